"""What goes wrong on long runs (docs/faults.md): nothing finished is lost, and a user's mistake is one message."""

import ast
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_journal import CHILD, Runs

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.ablation.weights import describe_hooks
from spex_mech.errors import FormatError, ModelError, ResponseError, SpexMechError
from spex_mech.gallery.studies import open_study, reopen, save_source

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ("responses.safetensors", "spectrum.json", "circuit.json", "interactions.csv", "run.json")


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    script = tmp_path_factory.mktemp("child") / "child.py"
    script.write_text(CHILD)
    made = subprocess.Popen(
        [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    yield made
    made.stdin.close()
    made.stdout.close()
    made.wait(10)


@pytest.fixture
def question():
    subject = planted.conjunction(("a0.h1", "a1.h0"), layout=planted.PlantedLayout(n_layers=2, n_heads=4, d_mlp=2))
    return subject, planted.task(n_prompts=4, seed=0)


def discover(question, out=None, **options):
    return sm.discover(*question, **{"budget": 300, "decoder": "linear", "link": "identity", "out": out, **options})


def cut_until_done(process, folder, kills, seed, end, cut):
    """So many kills at random moments of a run, or of the next one where it came to its end before."""
    whole, dice, number, killed = Runs(process, folder / "whole"), random.Random(seed), 0, 0
    started = time.monotonic()
    assert whole(end) == (0, "")
    longest = time.monotonic() - started
    while killed < kills:
        runs = Runs(process, folder / f"run-{number}")
        status, said = runs(cut, f"{dice.uniform(0.02, 0.5 * longest):.3f}")
        killed += status == -signal.SIGKILL
        if status == 0 or killed == kills:
            assert said == ""
            assert runs(end) == (0, "")
            same_run(whole, runs)
            longest, number = 0.7 * longest, number + 1


def same_run(*runs):
    one, other = (sm.load_run(r.folder) for r in runs)
    assert torch.equal(one.responses.values, other.responses.values)
    assert torch.equal(one.spectrum.coefficients, other.spectrum.coefficients)
    assert one.spectrum.sets == other.spectrum.sets


def test_killed_while_measuring_or_decoding(process, tmp_path):
    cut_until_done(process, tmp_path, 3, 0, "end", "stop")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_killed_fifty_times_while_measuring_or_decoding(process, tmp_path, seed):
    cut_until_done(process, tmp_path, 10, seed + 1, "finish", "cut")


@pytest.mark.parametrize("name", RESULTS)
def test_a_disk_that_is_full_when_results_are_written(question, tmp_path, monkeypatch, name):
    replace = os.replace

    def full(source, target):
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FormatError, match=f"{name} cannot be written: .*No space left on device"):
        discover(question, tmp_path)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr("spex_mech.ablation.respond.Engine.values", lambda *_: pytest.fail("measured again"))
    assert sm.load_run(tmp_path) if discover(question, tmp_path) else None
    assert not list(tmp_path.rglob("*.partial"))


def test_a_run_whose_r2_is_no_number_is_read_back(question, tmp_path):
    """Components that do nothing: the held-out masks have one value between them. JSON has no word for that R²."""
    found = discover(question, tmp_path, components="a0.h0, a0.h2, m0")
    there = sm.load_run(tmp_path)
    assert found.heldout_r2 != found.heldout_r2
    assert there.heldout_r2 != there.heldout_r2
    assert '"heldout_r2": null' in (tmp_path / "run.json").read_text()
    assert torch.equal(there.spectrum.coefficients, found.spectrum.coefficients)


def test_a_clock_that_jumps(question, tmp_path, monkeypatch):
    dice = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: dice.uniform(-1e9, 1e10))
    whole = discover(question)
    found = discover(question, tmp_path)
    assert torch.equal(found.responses.values, whole.responses.values)
    assert all(0 <= seconds < 1e5 for seconds in found.record["seconds"].values())
    assert discover(question, tmp_path).record["resumed_masks"] == 300


def test_a_metric_that_raises_keeps_what_was_measured(question, tmp_path):
    """The exception is the user's own, since only its traceback says where in their code it was."""
    subject, task = question

    def metric(logits, _):
        if metric.broken and metric.calls > 2:
            raise IndexError("a slip of the user's")
        metric.calls += 1
        return logits[:, 1]

    metric.broken, metric.calls = True, -10_000
    judged = (subject, task.with_metric(metric))
    whole = discover(judged, budget=800)
    metric.calls = 0
    with pytest.raises(IndexError, match="a slip of the user's"):
        discover(judged, tmp_path, budget=800)
    metric.broken = False
    found = discover(judged, tmp_path, budget=800)
    assert torch.equal(found.responses.values, whole.responses.values)


def test_a_hook_that_was_left_over_is_told_and_recorded(tmp_path):
    from tiny_models import tiny, tokens_task

    model, task = tiny("gpt2"), tokens_task()
    options = {"budget": 60, "decoder": "linear", "components": "a*.h*"}
    sm.discover(model, task, out=tmp_path, **options)
    handle = model.transformer.h[0].mlp.register_forward_hook(lambda _module, _args, output: output * 0.5)
    hooks = {"hooks": ["transformer.h.0.mlp"]}
    assert describe_hooks(model) == hooks
    with pytest.warns(UserWarning, match=r"hooks of yours on transformer\.h\.0\.mlp"):
        subject = sm.bind(model)
    with pytest.raises(ResponseError, match=r"subject\.hooks \(None there, \['transformer\.h\.0\.mlp'\] here\)"):
        sm.discover(subject, task, out=tmp_path, **options)
    assert sm.discover(subject, task, **options).record["subject"]["hooks"] == hooks["hooks"]
    handle.remove()
    assert sm.discover(subject, task, out=tmp_path, **options).record["resumed_masks"] == 60


def test_a_hook_of_transformer_lens_left_over_is_recorded():
    subject = open_study("induction-2l").subject
    assert describe_hooks(subject.model) == {}
    subject.model.blocks[0].attn.hook_z.add_hook(lambda x, hook: x * 0.5)
    assert [name.split(".")[-1] for name in subject.provenance["hooks"]] == ["hook_in"]


def test_kernels_that_are_not_deterministic_are_refused_at_binding():
    from tiny_models import tiny

    model = tiny("gpt2")
    plain = model.transformer.h[0].mlp.forward
    noise = torch.Generator().manual_seed(0)
    model.transformer.h[0].mlp.forward = lambda x: plain(x) * (1 + 1e-5 * torch.randn(1, generator=noise))
    with pytest.raises(ModelError, match=r"identity edit at all sites moved the logits .*must be bit-equal"):
        sm.bind(model)


def damage(path, dice):
    """Cut a file, or flip some of its bits; text stays mostly text."""
    data = bytearray(path.read_bytes())
    if dice.random() < 0.3:
        del data[dice.randrange(len(data)) :]
    for _ in range(dice.choice((1, 3, 30))):
        if data:
            data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["run.json", "spectrum.json", "circuit.json", "study.json", "responses.safetensors"])
def test_damaged_run_files_are_read_or_refused_in_one_message(question, tmp_path, name):
    discover(question, tmp_path / "run")
    save_source(tmp_path / "run", "planted-and")
    whole = (tmp_path / "run" / name).read_bytes()
    told = list[str]()
    for seed in range(60):
        (tmp_path / "run" / name).write_bytes(whole)
        damage(tmp_path / "run" / name, random.Random(seed))
        try:
            reopen(tmp_path / "run") if name == "study.json" else sm.load_run(tmp_path / "run")
        except SpexMechError as error:
            told.append(str(error))
    assert len(told) > 20
    assert all(name in text for text in told) or name == "study.json"


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("card", ["planted-and", "induction-2l"])
def test_damaged_cards_are_read_or_refused_in_one_message(tmp_path, card):
    source, refused = ROOT / "circuits" / card, 0
    files = [path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file()]
    for seed in range(40):
        folder = tmp_path / str(seed)
        shutil.copytree(source, folder)
        dice = random.Random(seed)
        damage(folder / dice.choice(files), dice)
        try:
            study = open_study(folder)
            if study.card and study.card.truth and study.card.truth.terms is None:
                _ = study.card.truth.values
        except SpexMechError:
            refused += 1
    assert refused > 10


def test_every_row_of_the_table_is_a_test():
    rows = [line for line in (ROOT / "docs" / "faults.md").read_text().splitlines() if line.startswith("| ")][2:]
    named = re.findall(r"`(test_\w+)\.(test_\w+)`", "\n".join(rows))
    assert len(rows) >= 20
    assert all(re.search(r"`test_\w+\.test_\w+`", row) for row in rows)
    for module, name in named:
        tree = ast.parse((ROOT / "tests" / f"{module}.py").read_text())
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, (module, name)


def test_nothing_is_unpickled_anywhere():
    """Neither by name, nor through a library that would; weights of others are read with weights_only or not at all."""
    paths = [path for folder in ("spex_mech", "examples", "circuits") for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 100
    for path in sorted(paths):
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            text = ast.unparse(node) if isinstance(node, ast.Call | ast.Import | ast.ImportFrom) else ""
            named = called or text
            assert not re.search(r"\b(pickle|dill|marshal|shelve|read_pickle|cloudpickle)\b", named), (path, text)
            assert not re.search(r"\bjoblib\b.*\b(load|dump)\b", named), (path, text)
            assert called not in ("eval", "exec", "os.system"), (path, text)
            keywords = {word.arg: ast.unparse(word.value) for word in getattr(node, "keywords", ())}
            assert keywords.get("trust_remote_code", "False") == "False", (path, text)
            assert keywords.get("allow_pickle", "False") == "False", (path, text)
            assert called != "torch.load" or keywords.get("weights_only") == "True", (path, text)


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_models_are_fetched_without_code_and_without_guesses(tmp_path, monkeypatch, place):
    """Whatever is fetched is told not to run code; what the files lack is not made up."""
    import transformers
    from tiny_models import tiny

    tiny("gpt2").save_pretrained(tmp_path)
    plain, asked = transformers.AutoModelForCausalLM.from_pretrained, []

    def fetch(what, **options):
        asked.append(options)
        return plain(tmp_path, **options)

    monkeypatch.setattr("spex_mech.ablation.load._ask_hub", lambda _: None, raising=False)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fetch)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda what, **options: asked.append(options))
    what = tmp_path if place == "folder" else "someone/something"
    (tmp_path / "tokenizer.json").write_text("{}")
    assert sm.load_model(what)[0].config.n_layer == 2
    assert len(asked) == 2
    assert all(options["trust_remote_code"] is False for options in asked)
    assert asked[0]["use_safetensors"] is True
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_layer": 3}))
    with pytest.raises(FormatError, match=r"the files lack weights that the config asks for:\n  - transformer\.h\.2"):
        sm.load_model(what)


@pytest.mark.parametrize(("name", "value"), [("n_layer", 10**9), ("num_local_experts", 10**7), ("n_ctx", 10**6)])
def test_a_few_digits_of_a_model_do_not_fill_the_memory(tmp_path, name, value):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "text_config": {name: value}}))
    with pytest.raises(FormatError, match=f"asks for more than its weights can be:\n  - {name} is {value:,}"):
        sm.load_model(tmp_path)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("kind", "file"), [
    ("native", "config.json"), ("native", "model.safetensors"), ("huggingface", "config.json"),
    ("huggingface", "model.safetensors"), ("huggingface", "tokenizer.json"),
])  # fmt: skip
def test_damaged_model_folders_are_read_or_refused_in_one_message(tmp_path, kind, file):
    """By a stranger's hand (see `test_fuzz`) or by chance; what can be read is bound or refused."""
    from test_fuzz import mangled_text
    from tiny_models import tiny

    if kind == "native":
        shutil.copytree(ROOT / "circuits" / "induction-2l" / "model", tmp_path, dirs_exist_ok=True)
    else:
        tiny("gpt2").save_pretrained(tmp_path)
        words = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}
        (tmp_path / "tokenizer.json").write_text(json.dumps({**words, "added_tokens": [], "normalizer": None}))
    whole, refused = (tmp_path / file).read_bytes(), 0
    for seed in range(40):
        dice = random.Random(seed)
        (tmp_path / file).write_bytes(whole)
        if file.endswith(".json") and seed % 4:
            (tmp_path / file).write_bytes(mangled_text(whole.decode(), dice))
        else:
            damage(tmp_path / file, dice)
        try:
            sm.bind(sm.load_model(tmp_path)[0])
        except SpexMechError:
            refused += 1
    assert refused > 5


def test_no_text_of_a_model_folder_is_run(tmp_path):
    """A folder that brings code of its own and asks for it to be run is refused; the code is not run."""
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    (tmp_path / "modeling_evil.py").write_text(code)
    config = {"model_type": "evil", "auto_map": {name: f"modeling_evil.{name}" for name in ("AutoConfig",)}}
    config["auto_map"] |= {"AutoModelForCausalLM": "modeling_evil.Evil"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(SpexMechError, match=r"comes with code of its own.*load it yourself"):
        sm.load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_weights_in_pickles_are_not_read(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    from tiny_models import tiny

    tiny("gpt2").config.save_pretrained(tmp_path)
    torch.save({"weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(SpexMechError):
        sm.load_model(tmp_path)
    assert not (tmp_path / "ran").exists()
