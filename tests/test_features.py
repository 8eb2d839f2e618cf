"""Parts of a prompt: what is left of the text, what a model reads of it, and what interacts."""

import os
import re
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import bridge_of, tiny

import spex_mech as sm
from spex_mech.bench.peers import has_shapiq, shapiq_proxy
from spex_mech.errors import ModelError, ResponseError, SpexMechWarning, TaskError
from spex_mech.lenses.prompt_parts import owners_of
from spex_mech.lenses.segments import Segments, split_prompt
from spex_mech.measuring.masks import AROUND

REVIEW = "The plot is not good but the music is nice"
WORDS = [*dict.fromkeys(REVIEW.split()), "bad", "very", "was", "film", "awful", "dull"]
fast = settings(max_examples=80, deadline=None)


def sentiment(texts):
    """Planted: +1 for good, -2 more where 'not' stands with it, +1/2 for nice."""
    return [
        1.0 * ("good" in t.split()) - 2.0 * ({"not", "good"} <= set(t.split())) + 0.5 * ("nice" in t.split())
        for t in texts
    ]


def tokenizer(special: bool = False, pad: bool = True):
    """A word-level tokenizer made here; with `special`, it adds [CLS] and [SEP] and has a mask token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[BOS]", *WORDS]
    inner = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        ends = [("[CLS]", 2), ("[SEP]", 3)]
        inner.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    options = {"unk_token": "[UNK]", **({"pad_token": "[PAD]"} if pad else {})}
    options |= (
        {"mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]"} if special else {"bos_token": "[BOS]"}
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, **options)


def classifier(seed: int = 0):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=6 + len(WORDS), hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, num_labels=2, pad_token_id=0, label2id={"bad": 0, "good": 1},
        id2label={0: "bad", 1: "good"}, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertForSequenceClassification(config).eval()
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.2)
    return model


# ---------------------------------------------------------------- parts and text

TEXTS = st.text(alphabet=st.sampled_from("ab.!?\n \t'é"), min_size=1, max_size=40).filter(str.strip)


@fast
@given(TEXTS, st.sampled_from(["words", "sentences"]), st.data())
def test_parts_and_gaps_are_the_prompt_and_nothing_kept_is_lost(text, into, data):
    parts = split_prompt(text, into)
    everything = torch.ones(len(parts.texts), dtype=torch.bool)
    assert parts.prompt == parts.without(everything) == parts.replaced(everything, "X") == text
    assert [text[start:stop] for start, stop in parts.spans] == list(parts.texts)
    keep = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(everything), max_size=len(everything))))
    kept = [t for t, k in zip(parts.texts, keep.tolist(), strict=True) if k]
    squeezed = re.sub(r"\s", "", parts.without(keep))
    assert squeezed == re.sub(r"\s", "", "".join(kept))
    other = parts.replaced(keep, ["#"] * len(keep))
    assert other.count("#") == int((~keep).sum())
    if into == "words":
        assert list(parts.texts) == text.split()


def test_parts_by_hand():
    assert split_prompt("Not good. Really?! No\n\nEnd", "sentences").texts == ("Not good.", "Really?!", "No", "End")
    assert split_prompt(["a ", "b"]).prompt == "a b"
    parts = split_prompt("one two three")
    assert [parts.without(torch.tensor(k)) for k in ([False, True, True], [True, False, False], [False] * 3)] == [
        "two three", "one", "",
    ]  # fmt: skip
    framed = parts.between("Q: ", " A:")
    assert framed.without(torch.tensor([False, True, False])) == "Q: two A:"
    assert framed.without(torch.zeros(3, dtype=torch.bool)) == "Q:  A:"
    assert parts.replaced(torch.tensor([True, False, True]), ["x", "y", "z"]) == "one y three"
    assert parts.components.names == ("s0", "s1", "s2")


def test_tokens_of_words_belong_to_their_parts():
    parts = Segments(("Not", "good"), ("", " ", "!"))
    assert owners_of(parts, [(0, 2), (2, 3), (3, 8), (8, 9), (0, 0)], [False] * 4 + [True]) == (0, 0, 1, -1, -1)


@pytest.mark.parametrize(
    ("prompt", "into", "message"),
    [("  ", "words", "has no parts"), ("a", "tokens", "fast tokenizer"), ("a", "letters", "not 'letters'"),
     (["a", ""], "words", "must be a text"), ([], "words", "0 parts")],
)  # fmt: skip
def test_prompts_that_cannot_be_split(prompt, into, message):
    with pytest.raises(TaskError, match=message):
        split_prompt(prompt, into)


# ---------------------------------------------------------------- functions of text


@pytest.mark.parametrize("ablation", ["remove", "mask", "replace"])
def test_words_that_interact_are_found_with_their_sign(ablation):
    found = sm.discover_features(sentiment, REVIEW, ablation=ablation, filler="…", budget=1024)
    names = dict(zip(REVIEW.split(), found.components.names, strict=True))
    not_, good, nice = names["not"], names["good"], names["nice"]
    got = {frozenset(i.components): i.coefficient for i in found.circuit.interactions}
    assert got == {  # of good + nice/2 - 2·not·good; the main effect of good is 1/2 - 2/4, none
        frozenset([not_, good]): pytest.approx(-0.5),
        frozenset([not_]): pytest.approx(-0.5),
        frozenset([nice]): pytest.approx(0.25),
    }
    assert {n.name: n.role for n in found.circuit.nodes} == {not_: "not", good: "good", nice: "nice"}
    # needed jointly: good, and that 'not' is away
    assert next(i.kind for i in found.circuit.interactions if i.order == 2) == "synergy"


def test_a_run_of_text_is_saved_resumed_and_read_back(tmp_path):
    calls = []

    def dear(texts):
        calls.append(len(texts))
        return [float(len(t)) + 3.0 * ("good" in t) * ("nice" in t) for t in texts]

    options = {"budget": 1024, "decoder": "exact", "out": tmp_path / "run", "batch_rows": 64, "identity": "dear"}
    found = sm.discover_features(dear, REVIEW, **options)
    spent = sum(calls)
    assert spent <= 1024
    assert max(calls) <= 64
    again = sm.discover_features(dear, REVIEW, **options)
    assert sum(calls) == spent  # nothing was asked twice
    loaded = sm.load_run(tmp_path / "run")
    for one in (again, loaded):
        assert one.circuit.interactions == found.circuit.interactions
        assert one.circuit.nodes == found.circuit.nodes
        assert torch.equal(one.responses.values, found.responses.values)
    with pytest.raises(sm.SpexMechError, match=r"another|differ"):
        sm.discover_features(dear, REVIEW.replace("nice", "dull"), **options)


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    text = " ".join(f"w{i}" for i in range(30))
    limit = [2]

    def flaky(texts):
        limit[0] -= 1
        if limit[0] < 0:
            raise KeyboardInterrupt
        return [float(sum(map(len, t.split()))) ** 0.5 for t in texts]

    options = {"budget": 600, "decoder": "linear", "batch_rows": 256, "link": "identity", "identity": "api"}
    with pytest.raises(KeyboardInterrupt):
        sm.discover_features(flaky, text, out=tmp_path / "run", **options)
    limit[0] = 100
    found = sm.discover_features(flaky, text, out=tmp_path / "run", **options)
    assert limit[0] == 99  # two of three chunks came from the journal
    assert found.record["resumed_masks"] == 512
    whole = sm.discover_features(flaky, text, **options)
    assert torch.equal(found.responses.values, whole.responses.values)


def test_several_outputs_and_functions_that_give_nonsense():
    def both(texts):
        return torch.tensor([[float(len(t)), float("good" in t)] for t in texts])

    found = sm.discover_features(both, REVIEW, budget=1024, outputs=2)
    assert found.responses.values.shape == (1024, 2)
    for wrong, message in (
        (lambda texts: ["a"] * len(texts), "no list of numbers"),
        (lambda texts: [1.0], r"gave \(1,\)|gave \(1, 1\)"),
        (lambda texts: [float("nan")] * len(texts), "not finite"),
    ):
        with pytest.raises(ResponseError, match=message):
            sm.discover_features(wrong, REVIEW, budget=64)
    with pytest.raises(TaskError, match="'pad'"):
        sm.discover_features(sentiment, REVIEW, ablation="pad", budget=64)
    with pytest.raises(TaskError, match="2 replacement texts"):
        sm.discover_features(sentiment, REVIEW, ablation="replace", filler=["a", "b"], budget=64)


# ---------------------------------------------------------------- models


def one_by_one(model, rows, read):
    """An independent reading: every row (ids, attended) alone, no padding, no batch."""
    values = []
    for row in rows:
        ids, seen = (torch.tensor([part]) for part in row)
        with torch.no_grad():
            values.append(read(model(input_ids=ids, attention_mask=seen).logits[0], row))
    return torch.tensor(values)


SHORT = "The plot is not good"


@pytest.mark.parametrize("ablation", ["remove", "replace", "pad"])
def test_a_causal_model_reads_what_is_left(ablation):
    model, tok = tiny("gpt2"), tokenizer()
    found = sm.discover_features(
        model, SHORT, tokenizer=tok, ablation=ablation, filler="bad", answer="nice", distractors=["awful", "dull"],
        metric="logit_diff", budget=64, batch_rows=7,
    )  # fmt: skip
    words = SHORT.split()
    rows = []
    for keep in found.responses.keep.tolist():
        kept = [w if k else None for w, k in zip(words, keep, strict=True)]
        if ablation == "pad":
            ids = [tok.convert_tokens_to_ids(w) if w else 0 for w in kept]
            seen = [int(bool(w)) for w in kept]
            row = (ids, seen) if any(seen) else ([5], [1])
        else:
            left = [w or "bad" for w in kept] if ablation == "replace" else [w for w in kept if w]
            ids = tok.convert_tokens_to_ids(left) or [5]
            row = (ids, [1] * len(ids))
        rows.append(row)
    nice, awful, dull = tok.convert_tokens_to_ids(["nice", "awful", "dull"])

    def read(logits, row):
        at = max(i for i, seen in enumerate(row[1]) if seen)
        return logits[at, nice] - (logits[at, awful] + logits[at, dull]) / 2

    expected = one_by_one(model, rows, read)
    assert torch.allclose(found.responses.values[:, 0], expected, atol=1e-4)
    assert found.responses.unit == "logit"
    assert expected.std() > 0.01


def test_a_continuation_is_the_sum_over_its_tokens():
    model, tok = tiny("gpt2"), tokenizer()
    found = sm.discover_features(model, SHORT, tokenizer=tok, answer="but the music", metric="log_prob", budget=64)
    answer = tok.convert_tokens_to_ids(["but", "the", "music"])
    rows = []
    for keep in found.responses.keep.tolist():
        ids = tok.convert_tokens_to_ids([w for w, k in zip(SHORT.split(), keep, strict=True) if k]) or [5]
        rows.append((ids + answer, [1] * (len(ids) + 3)))

    def read(logits, row):
        log_p = logits.log_softmax(-1)
        start = len(row[0]) - 4
        return sum(log_p[start + j, token] for j, token in enumerate(answer))

    assert torch.allclose(found.responses.values[:, 0], one_by_one(model, rows, read), atol=1e-4)
    with pytest.raises(TaskError, match="'log_prob'"):
        sm.discover_features(model, SHORT, tokenizer=tok, answer="but the music", metric="logit", budget=64)


@pytest.mark.parametrize("ablation", ["remove", "mask", "pad", "replace"])
def test_a_classifier_reads_what_is_left(ablation):
    model, tok = classifier(), tokenizer(special=True)
    found = sm.discover_features(
        model, SHORT, tokenizer=tok, ablation=ablation, filler="bad", answer="good", metric="logit_diff", budget=64,
        batch_rows=5,
    )  # fmt: skip
    rows = []
    for keep in found.responses.keep.tolist():
        words = [(tok.convert_tokens_to_ids(w), k) for w, k in zip(SHORT.split(), keep, strict=True)]
        if ablation == "remove":
            inner = [(i, 1) for i, k in words if k]
        elif ablation == "pad":
            inner = [(i if k else 0, int(k)) for i, k in words]
        else:
            other = 4 if ablation == "mask" else tok.convert_tokens_to_ids("bad")
            inner = [(i if k else other, 1) for i, k in words]
        row = [(2, 1), *inner, (3, 1)]
        rows.append(([i for i, _ in row], [s for _, s in row]))
    expected = one_by_one(model, rows, lambda logits, _: logits[1] - logits[0])
    assert torch.allclose(found.responses.values[:, 0], expected, atol=1e-4)


@pytest.mark.parametrize("ablation", ["remove", "pad"])
def test_a_classifier_on_a_decoder_reads_its_last_token(ablation):
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=1, n_head=2, n_positions=32, num_labels=3, pad_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2ForSequenceClassification(config).eval()
    tok = tokenizer()
    options = {"tokenizer": tok, "ablation": ablation, "answer": 2, "metric": "log_prob", "budget": 64, "batch_rows": 9}
    found = sm.discover_features(model, SHORT, **options)
    rows = []
    for keep in found.responses.keep.tolist():
        words = [(i, int(k)) for i, k in zip(tok.convert_tokens_to_ids(SHORT.split()), keep, strict=True)]
        row = [(i if k else 0, k) for i, k in words if k or ablation == "pad"]
        rows.append(([i for i, _ in row], [k for _, k in row]) if any(keep) else ([5], [1]))
    expected = one_by_one(model, rows, lambda logits, _: logits.log_softmax(-1)[2])
    assert torch.allclose(found.responses.values[:, 0], expected, atol=1e-4)
    model.config.pad_token_id = None
    with pytest.raises(ModelError, match="pad_token_id"):
        sm.discover_features(model, SHORT, **options)


def test_the_default_answer_is_what_the_model_says_of_the_whole_prompt():
    model, tok = classifier(), tokenizer(special=True)
    found = sm.discover_features(model, SHORT, tokenizer=tok, budget=64, metric="prob")
    whole = found.responses.keep.all(1)
    assert float(found.responses.values[whole][0]) >= 0.5
    kl = sm.discover_features(model, SHORT, tokenizer=tok, budget=64, metric="kl")
    assert float(kl.responses.values[whole][0]) == pytest.approx(0.0, abs=1e-6)
    assert float(kl.responses.values.max()) > 0


def test_tokens_of_a_bound_subject_are_those_of_the_model_itself():
    model = tiny("gpt2")
    ids = [7, 12, 9, 30, 21]
    # without a tokenizer nothing can stand for nothing; the first token is kept by being no part
    parts = Segments(tuple(map(str, ids[1:])), ("",) * 5, "token", tuple(ids), (1, 2, 3, 4))
    one, other = (
        sm.discover_features(m, parts, answer=3, distractors=[4], metric="logit_diff", budget=64)
        for m in (model, bridge_of(model))
    )
    assert one.components.names == ("t0", "t1", "t2", "t3")
    assert torch.allclose(one.responses.values, other.responses.values, atol=1e-4)
    left = [[7, *(i for i, k in zip(ids[1:], keep, strict=True) if k)] for keep in one.responses.keep.tolist()]
    rows = [(row, [1] * len(row)) for row in left]
    expected = one_by_one(
        model, [(r[0], [1] * len(r[0])) for r in rows], lambda logits, _: logits[-1, 3] - logits[-1, 4]
    )
    assert torch.allclose(one.responses.values[:, 0], expected, atol=1e-4)
    with pytest.raises(TaskError, match="no token is left"):
        sm.discover_features(model, ids, answer=3, budget=64)
    with pytest.raises(TaskError, match="'pad'"):
        sm.discover_features(bridge_of(model), parts, answer=3, ablation="pad", budget=64)


def test_what_a_model_lens_refuses():
    model, tok = tiny("gpt2"), tokenizer()
    for options, message in (
        ({"tokenizer": None}, "without a tokenizer"),
        ({"metric": "loss"}, "has no metric 'loss'"),
        ({"metric": "logit_diff"}, "needs distractors"),
        ({"answer": 999}, r"tokens \[999\] do not exist"),
        ({"distractors": ["not good"], "metric": "logit_diff"}, "one token each"),
        ({"ablation": "mask"}, "mask token"),
        ({"ablation": "blur"}, "no ablation 'blur'"),
    ):
        with pytest.raises(TaskError, match=message):
            sm.discover_features(model, SHORT, **{"tokenizer": tok, "budget": 64, **options})
    with pytest.raises(TaskError, match="no class 'ugly'"):
        sm.discover_features(classifier(), SHORT, tokenizer=tokenizer(special=True), answer="ugly", budget=64)


def trained():
    """A classifier of reviews trained here: 'good' and 'nice' are good, unless 'not' stands before them."""
    model, tok = classifier(1), tokenizer(special=True)
    generator = torch.Generator().manual_seed(0)
    filler = [w for w in WORDS if w not in ("good", "nice", "not", "bad", "awful", "dull")]

    def example():
        words = [filler[int(torch.randint(len(filler), (1,), generator=generator))] for _ in range(7)]
        no, good = (bool(torch.randint(2, (1,), generator=generator)) for _ in range(2))
        places = sorted(torch.randperm(7, generator=generator)[:2].tolist())
        if no:
            words[places[0]] = "not"
        if good:
            words[places[1]] = "good"
        return " ".join(words), int(good and not no)

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(200):
        texts, labels = zip(*(example() for _ in range(32)), strict=True)
        batch = tok(list(texts), padding=True, return_tensors="pt")
        loss = model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=torch.tensor(labels)
        ).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), tok, float(loss)


@pytest.mark.slow
def test_a_trained_classifier_shows_that_not_turns_good_around():
    model, tok, loss = trained()
    assert loss < 0.1
    text = "The plot is not film good the music"
    found = sm.discover_features(
        model, text, tokenizer=tok, ablation="mask", answer="good", metric="logit_diff", budget=256
    )
    names = dict(zip(text.split(), found.components.names, strict=True))
    frame = found.interactions()
    strongest = frame[frame["order"] == 2].iloc[0]
    assert set(strongest["components"]) == {names["not"], names["good"]}
    assert strongest["coefficient"] < 0
    main = {i.components[0]: i.coefficient for i in found.circuit.interactions if i.order == 1}
    assert main[names["not"]] < 0 < main[names["good"]]


@pytest.mark.slow
def test_five_hundred_segments_are_decoded():
    n = 500
    text = " ".join(f"w{i}" for i in range(n))

    def planted(texts):
        words = [set(t.split()) for t in texts]
        return [2.0 * ("w7" in w) - 3.0 * ({"w100", "w333"} <= w) + 1.0 * ("w499" in w) for w in words]

    found = sm.discover_features(planted, text, budget=3000, decoder="proxyspex", link="identity")
    got = {i.components: i.coefficient for i in found.circuit.interactions}
    truth = {("s100", "s333"): -0.75, ("s100",): -0.75, ("s333",): -0.75, ("s7",): 1.0, ("s499",): 0.5}
    assert {s: got[s] for s in truth} == {s: pytest.approx(c, abs=0.02) for s, c in truth.items()}
    assert found.heldout_r2 > 0.99


def test_every_word_alone_is_exhaustive():
    """The masks of few words are all masks, so the polynomial is the function."""
    found = sm.discover_features(sentiment, "not good nice", budget=8)
    keep = torch.tensor(list(product([False, True], repeat=3)))
    texts = [" ".join(w for w, k in zip(("not", "good", "nice"), row, strict=True) if k) for row in keep.tolist()]
    assert found.predict(keep).tolist() == pytest.approx(sentiment(texts), abs=1e-6)


def long_text(n: int = 500, seed: int = 0):
    """A text of n words and a function of it: 20 words, 15 pairs and 5 triples count, where all of a set are there."""
    generator = np.random.default_rng(seed)

    def some(size):
        return tuple(sorted(generator.choice(n, size, replace=False).tolist()))

    sizes = [1] * 20 + [2] * 15 + [3] * 5
    sets = {some(size): size * float(generator.normal()) for size in sizes}

    def value(texts):
        there = [{int(word[1:]) for word in text.split()} for text in texts]
        return [sum(weight for members, weight in sets.items() if kept.issuperset(members)) for kept in there]

    return " ".join(f"w{i}" for i in range(n)), value, sets


@pytest.mark.slow
def test_500_words_are_decoded_and_beside_shapiq():
    """Run with ``-s`` to see the figures; the peer runs where SPEX_MECH_PEER_PYTHON names a Python that has it."""
    text, value, sets = long_text()
    found = sm.discover_features(value, text, budget=2048, link="identity")
    fresh = sm.discover_features(value, text, budget=1024, seed=1, decoder="linear", link="identity").responses
    truth = fresh.values[:, 0].double()

    def r2(predicted):
        return float(1 - ((truth - predicted) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())

    ours = r2(found.predict(fresh.keep).double())
    names = found.components.names
    joint = {tuple(names[i] for i in members) for members in sets if len(members) > 1}
    assert joint <= {i.components for i in found.circuit.interactions}
    assert ours > 0.999
    print(f"\njoint {ours:.4f}")
    python = os.environ.get("SPEX_MECH_PEER_PYTHON")
    if python is None or not has_shapiq(python):
        pytest.skip("there is no shapiq to compare with: SPEX_MECH_PEER_PYTHON")
    given = (found.responses.keep.numpy(), found.responses.values[:, 0].double().numpy(), fresh.keep.numpy())
    for method in ("proxyspex, one fit", "proxyshap"):
        peer = shapiq_proxy(*given, method, python)
        assert peer is not None
        print(f"shapiq {method} {r2(torch.from_numpy(peer.predicted)):.4f}")
        assert r2(torch.from_numpy(peer.predicted)) < ours


def test_a_pilot_decides_with_what_the_parts_are_kept_and_its_masks_are_the_first_of_the_run(tmp_path):
    """Twelve of fourteen words are needed together: none of it is left where half are kept."""
    words = [f"w{i}" for i in range(14)]
    asked = []

    def fragile(texts):
        asked.extend(texts)
        return [float(all(word in text.split() for word in words[:12])) + 0.01 * ("w13" in text) for text in texts]

    options = {"keep_prob": "auto", "budget": 2048, "decoder": "linear", "link": "identity", "identity": "fragile"}
    found = sm.discover_features(fragile, " ".join(words), out=tmp_path, **options)
    pilot = found.record["pilot"]
    assert pilot["keep_prob"] >= 0.9
    assert found.record["design"]["keep_probs"] == pilot["keep_probs"] == list(AROUND[pilot["keep_prob"]])
    assert (pilot["intact"], pilot["empty"]) == (pytest.approx(1.01), 0.0)
    assert len(found.responses) + pilot["masks"] == 2048
    assert len(asked) <= 2048
    spent = len(asked)
    assert sm.discover_features(fragile, " ".join(words), out=tmp_path, **options).record["pilot"] == pilot
    assert len(asked) == spent
    plain = sm.discover_features(
        fragile, " ".join(words), **{**options, "keep_prob": pilot["keep_probs"], "budget": len(found.responses)}
    )
    assert torch.equal(plain.responses.values, found.responses.values)
    sm.discover_features(fragile, "a b c d e f g h i j k l", out=tmp_path / "b", **{**options, "keep_prob": 0.8})
    with pytest.raises(ResponseError, match="without a pilot"):
        sm.discover_features(fragile, "a b c d e f g h i j k l", out=tmp_path / "b", **options)


def test_every_different_text_is_asked_once_over_all_chunks():
    asked = []
    found = sm.discover_features(
        lambda texts: asked.extend(texts) or sentiment(texts), REVIEW, budget=1500, keep_prob=0.9, decoder="linear"
    )
    assert len(asked) == len(found.responses.keep.unique(dim=0)) < 800
    rows = torch.cat([found.responses.keep.float(), found.responses.values], 1)
    assert len(rows.unique(dim=0)) == len(asked)  # a mask that occurs again has the value of the first


def test_decoding_again_knows_the_words(tmp_path):
    from spex_mech.api.discover import decode

    found = sm.discover_features(sentiment, REVIEW, budget=1024, out=tmp_path)
    again = decode(sm.Responses.load(tmp_path / "responses.safetensors"))
    assert {n.name: n.role for n in again.circuit.nodes} == {n.name: n.role for n in found.circuit.nodes}
    assert "good" in {n.role for n in again.circuit.nodes}


def test_a_metric_that_saturates_says_so_at_the_callers_line():
    options = {"answer": 2, "budget": 8, "metric": "prob"}
    prompt = Segments(("3", "4", "5"), ("", " ", " ", ""), "token", (2, 3, 4, 5), (1, 2, 3))
    with pytest.warns(SpexMechWarning, match="'prob': probability saturates") as told:
        found = sm.discover_features(tiny("gpt2"), prompt, **options)
    assert {warning.filename for warning in told if warning.category is SpexMechWarning} == {__file__}
    assert found.record["larger_is_better"] is True
