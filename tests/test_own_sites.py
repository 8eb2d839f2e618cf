"""Sites of the user's own, and latents on them: against edited weights and hand-written hooks, or refused by name."""

import copy

import pytest
import torch
from tiny_models import bridge_of, tiny, tokens_task
from torch import nn

import spex_mech as sm
from spex_mech.ablation.own_contract import own_line
from spex_mech.errors import ComponentError, ModelError, ResponseError

TASK = tokens_task()
TOKENS = TASK.prompts.tokens
MLP = "model.layers.0.mlp"


def logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model(input_ids=tokens, use_cache=False).logits


def by_ablation(subject, names, **options):
    with sm.ablated(subject, ablate=names, **{"replacement": "zero", **options}) as model:
        return logits(model)


def turned(width, seed=0):
    """An orthogonal matrix."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, generator=generator))[0]


def planted(seed=0, width=32):
    """An autoencoder that rebuilds everything, each latent a direction."""
    q = turned(width, seed)
    return (lambda x: x @ q), (lambda z: z @ q.T), q


def lossy(width=32, count=24, seed=1):
    """An autoencoder with thresholds, which rebuilds little; of modules with weights."""
    generator = torch.Generator().manual_seed(seed)
    encode, decode = nn.Sequential(nn.Linear(width, count), nn.ReLU()), nn.Linear(count, width)
    with torch.no_grad():
        for p in (*encode.parameters(), *decode.parameters()):
            p.copy_(torch.randn(p.shape, generator=generator) * 0.2)
    return encode, decode


@pytest.mark.parametrize("at", ["input", "output"])
def test_slices_of_a_tensor_are_columns_of_the_weights_that_read_or_write_it(at):
    model = tiny("llama")
    place = {"input": f"{MLP}.down_proj", "output": f"{MLP}.up_proj"}[at]
    subject = sm.bind(model, sites=[sm.site(place, size=6, name="mine", at=at)])
    assert subject.shape.own == (("mine", 8),)
    edited = copy.deepcopy(model)
    weight = edited.get_submodule(place).weight
    with torch.no_grad():
        (weight.T if at == "input" else weight)[12:18] = 0
    found = by_ablation(subject, "mine.2")
    assert (found - logits(edited)).abs().max() <= 1e-5
    assert (found - logits(model)).abs().max() > 1e-3


def test_any_axis_and_any_place_of_positions():
    """What Qwen3 norms of its queries: [row, pos, head, feature]; a head's query at zero attends to all alike."""
    model = tiny("qwen3")
    path = "model.layers.0.self_attn.q_norm"
    subject = sm.bind(
        model, sites=[sm.site(path, axis=2, size=1, name="query"), sm.site(path, axis=3, size=8, name="half")]
    )
    assert subject.shape.own == (("query", 4), ("half", 2))
    for name, where in (("query.1", (slice(None), slice(None), 1)), ("half.1", (..., slice(8, 16)))):

        def hook(_module, _args, output, where=where):
            output = output.clone()
            output[where] = 0
            return output

        with model.get_submodule(path).register_forward_hook(hook):
            expected = logits(model)
        assert (by_ablation(subject, name) - expected).abs().max() <= 1e-6
        assert (expected - logits(model)).abs().max() > 1e-4


@pytest.mark.parametrize("replacement", ["zero", "mean", "resample"])
def test_every_replacement_by_hand(replacement):
    model, path = tiny("llama"), "model.layers.0"
    subject = sm.bind(model, sites=[sm.site(path, size=4, name="resid")])
    seen = []
    of = {"mean": TASK.reference, "resample": TASK.corrupt}.get(replacement, TASK.prompts).tokens
    with model.get_submodule(path).register_forward_hook(lambda _m, _a, out: seen.append(out)):
        logits(model, of)
    other = {"zero": torch.zeros_like(seen[0]), "mean": seen[0].mean(0, keepdim=True), "resample": seen[0]}[replacement]

    def hook(_module, _args, output):
        output = output.clone()
        output[..., 8:12] = other.expand_as(output)[..., 8:12]
        output[:, -1, 0:4] = other.expand_as(output)[:, -1, 0:4]
        return output

    with model.get_submodule(path).register_forward_hook(hook):
        expected = logits(model)
    found = by_ablation(subject, "resid.2, resid.0@p-1", replacement=replacement, task=TASK)
    assert (found - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("reads", ["site", "input"])
def test_planted_latents_are_directions_projected_out_of_the_weights(reads):
    model, (encode, decode, q) = tiny("llama"), planted()
    if reads == "site":
        subject = sm.bind(model, sites=[sm.latents(sm.site(MLP, name="sae"), encode, decode)])
        edited = copy.deepcopy(model)
        gone = q[:, [3, 5]]
        with torch.no_grad():
            weight = edited.get_submodule(f"{MLP}.down_proj").weight
            weight -= gone @ gone.T @ weight
        expected = logits(edited)
    else:  # a transcoder: the neurons of the MLP themselves, which it rebuilds all of
        mlp = model.get_submodule(MLP)
        read = lambda x: mlp.act_fn(x @ mlp.gate_proj.weight.T) * (x @ mlp.up_proj.weight.T)  # noqa: E731
        write = lambda z: z @ mlp.down_proj.weight.T  # noqa: E731
        subject = sm.bind(model, sites=[sm.latents(sm.site(MLP, name="sae"), read, write, reads="input")])
        expected = by_ablation(subject, "m0.n3, m0.n5")
    assert subject.own_certificates[0].unexplained <= 1e-6
    assert (by_ablation(subject, "sae.3, sae.5") - expected).abs().max() <= 1e-5
    assert (expected - logits(model)).abs().max() > 1e-3


def test_what_is_not_rebuilt_is_kept_so_that_the_intact_model_is_the_model():
    model, (encode, decode) = tiny("llama"), lossy()
    subject = sm.bind(model, sites=[sm.latents(sm.site(MLP, name="sae"), encode, decode)])
    (told,) = subject.own_certificates
    assert told.spliced == 0
    assert told.unexplained > 0.5
    tokens = TOKENS.to(subject.device)
    identity = {site: (lambda x: x) for site in subject.sites}
    assert subject.forward(tokens, identity, None).equal(logits(model))

    def hook(_module, _args, output):
        z = encode(output)
        other = z.clone()
        other[..., 7] = 0
        return output + decode(other) - decode(z)

    with model.get_submodule(MLP).register_forward_hook(hook):
        expected = logits(model)
    assert (by_ablation(subject, "sae.7") - expected).abs().max() <= 1e-5
    assert "not rebuilt, kept" in own_line(told)


def test_without_error_the_model_is_the_spliced_one_and_that_is_told():
    model, (encode, decode) = tiny("llama"), lossy()
    subject = sm.bind(model, sites=[sm.latents(sm.site(MLP, name="sae", size=4), encode, decode, error=False)])
    with model.get_submodule(MLP).register_forward_hook(lambda _m, _a, out: decode(encode(out))):
        spliced = logits(model)
    assert (subject.forward(TOKENS, {}, None) - spliced).abs().max() <= 1e-6
    assert (spliced - logits(model)).abs().max() > 1e-2
    assert "left out, which moves the logits by" in own_line(subject.own_certificates[0])

    def hook(_module, _args, out):
        z = encode(out)
        z[..., 4:8] = 0
        return decode(z)

    with model.get_submodule(MLP).register_forward_hook(hook), torch.no_grad():
        expected = logits(model)
    with torch.no_grad():
        assert (by_ablation(subject, "sae.1") - expected).abs().max() <= 1e-5
        assert (by_ablation(subject, "a0.h1")[0] - spliced[0]).abs().max() > 1e-3
    found = sm.discover(subject, TASK, "sae.*, a1.h0", budget=200, replacement="zero", decoder="exact").responses
    at = spliced[torch.arange(3), TASK.positions]
    wrong = TASK.distractors >= 0
    mean = (at.gather(1, TASK.distractors.clamp(min=0)) * wrong).sum(1) / wrong.sum(1)
    whole = found.keep.all(1).nonzero()[0, 0]
    assert (found.values[whole] - (at[torch.arange(3), TASK.answers] - mean)).abs().max() <= 1e-5


@pytest.mark.parametrize("wrap", ["torch", "nnsight", "bridge"])
def test_engine_backends_and_single_masks_agree(wrap):
    from nnsight import NNsight

    model, (encode, decode) = tiny("llama"), lossy()
    held = {"torch": lambda m: m, "bridge": bridge_of, "nnsight": NNsight}[wrap](copy.deepcopy(model))
    path = "blocks.0" if wrap == "bridge" else "model.layers.0"
    subject = sm.bind(held, sites=[sm.latents(sm.site(path, name="sae", size=6), encode, decode)])
    names = "sae.*, a0.h1, a1.h2, m1"
    found = sm.discover(subject, TASK, names, budget=40, replacement="zero", decoder="linear").responses
    plain = sm.bind(model, sites=[sm.latents(sm.site("model.layers.0", name="sae", size=6), encode, decode)])
    for row in (1, 5, 9):
        gone = [n for n, kept in zip(found.components.names, found.keep[row], strict=True) if not kept]
        at = by_ablation(plain, gone)[torch.arange(3), TASK.positions]
        wrong = TASK.distractors >= 0
        mean = (at.gather(1, TASK.distractors.clamp(min=0)) * wrong).sum(1) / wrong.sum(1)
        assert (found.values[row] - (at[torch.arange(3), TASK.answers] - mean)).abs().max() <= 1e-4
    if wrap == "bridge":
        assert sm.hooks(subject, ablate="a0.h1", replacement="zero")
        with pytest.raises(ModelError, match=r"sae are no hook points of TransformerLens; use sm\.ablated"):
            sm.hooks(subject, ablate="sae.1", replacement="zero")


def test_run_record_resume_and_audit_know_the_autoencoder_by_what_it_computes(tmp_path):
    (encode, decode), other = lossy(), lossy(seed=2)
    bound = lambda pair: sm.bind(tiny("llama"), sites=[sm.latents(sm.site(MLP, name="sae", size=3), *pair)])  # noqa: E731
    options = {"budget": 256, "replacement": "zero", "out": tmp_path, "decoder": "exact"}
    found = sm.discover(bound((encode, decode)), TASK, "sae.*", **options)
    told = found.record["subject"]["sites"]["sae"]
    assert (told["module"], told["size"], told["error"]) == (MLP, 3, True)
    assert found.record["sites"][0]["parts"] == 8
    assert sm.discover(bound(lossy()), TASK, "sae.*", **options).record["resumed_masks"] == 256
    with pytest.raises(ResponseError, match=r"subject\.sites\.sae\.probe\.logits \(moved by"):
        sm.discover(bound(other), TASK, "sae.*", **options)
    with pytest.raises(ResponseError, match=r"subject\.sites"):
        sm.discover(sm.bind(tiny("llama"), sites=[sm.site(MLP, size=4, name="sae")]), TASK, "sae.*", **options)
    audit = sm.audit(found, bound((encode, decode)), TASK, budget=300)
    assert set(audit.circuit.names) <= set(found.circuit.components.names)
    sm.report(tmp_path).save(tmp_path / "report.html")
    assert "sae.1" in (tmp_path / "report.html").read_text()


def test_an_autoencoder_that_changes_on_the_way_is_noticed(monkeypatch):
    from spex_mech.ablation.respond import Engine

    monkeypatch.setattr(Engine, "chunk", 16)
    encode, decode = lossy()
    subject, usual, calls = (
        sm.bind(tiny("llama"), sites=[sm.latents(sm.site(MLP, name="sae"), encode, decode)]),
        Engine.values,
        [],
    )

    def values(self, keep):
        calls.append(len(keep))
        if len(calls) == 2:
            with torch.no_grad():
                encode[0].weight.mul_(2)
        return usual(self, keep)

    monkeypatch.setattr(Engine, "values", values)
    with pytest.raises(ResponseError, match="changed while it was measured"):
        sm.discover(subject, TASK, "sae.*", budget=64, replacement="zero", decoder="linear")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (lambda: sm.site("model.layers.9", name="resid"), r"resid: the model has no module 'model\.layers\.9'"),
        (lambda: sm.site(MLP, size=5, name="mlps"), "mlps: 32 slices along axis -1 cannot be cut into parts of 5"),
        (lambda: sm.site(MLP, axis=1, pos=2, name="mlps"), "mlps: "),
        (lambda: sm.site("model.embed_tokens", at="input", name="ids"), r"ids: the input of its module is .*int64"),
        (lambda: sm.site("model.layers.0.self_attn.rotary", name="rot"), "rot: the model has no module"),
        (
            lambda: sm.latents(sm.site(MLP, name="sae"), nn.Linear(9, 4), nn.Linear(4, 9)),
            "sae: a tensor .* cannot be taken",
        ),
        (lambda: sm.latents(sm.site(MLP, name="sae"), nn.Linear(32, 4), nn.Linear(4, 9)), "sae: decode gives"),
        (
            lambda: sm.latents(sm.site(MLP, name="sae"), lambda x: x, lambda z: z.flip(1)),
            "sae: encode or decode mixes rows or positions",
        ),
    ],
)
def test_what_cannot_be_certified_is_refused_by_name(asked, message):
    with pytest.raises(ModelError, match=message):
        sm.bind(tiny("llama"), sites=[asked()])


def test_words_that_are_no_site():
    for options in ({"name": "a1"}, {"name": "adapter"}, {"name": "x.y"}, {"size": 0}, {"axis": 1}, {"at": "within"}):
        with pytest.raises(ComponentError, match="this is no site"):
            sm.site(MLP, **options)
    with pytest.raises(ComponentError, match="site of features"):
        sm.latents(sm.site(MLP, axis=2, name="sae"), nn.Identity(), nn.Identity())
    with pytest.raises(ModelError, match="more than once"):
        sm.bind(tiny("llama"), sites=[sm.site(MLP, name="same"), sm.site(f"{MLP}.up_proj", name="same")])


def test_an_attention_pattern_grows_with_the_prompt_and_is_refused():
    class Pattern(nn.Module):
        def forward(self, x):
            return x

    model = tiny("llama")

    class Mixing(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner, self.pattern = inner, Pattern()

        def forward(self, x):
            scores = self.pattern(torch.tril(x @ x.transpose(1, 2)))
            return self.inner(x) + 0.01 * scores @ x

    model.model.layers[0].mlp = Mixing(model.model.layers[0].mlp)
    with pytest.raises(ModelError, match=r"pattern: its parts have 6 features in one prompt, 4 in a shorter one"):
        sm.bind(model, sites=[sm.site(f"{MLP}.pattern", name="pattern")])
