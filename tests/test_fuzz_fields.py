"""One field of a good file changed: it is read, shown and written again, or refused by one error of ours."""

import copy
import json
import random
import resource
import shutil
import time
import tomllib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.errors import SpexMechError
from spex_mech.formats.interchange import EXPORTERS, export
from spex_mech.gallery.studies import reopen
from spex_mech.store.spectrum_file import load_spectrum

CARD = Path(__file__).resolve().parents[1] / "circuits" / "planted-and"
QUICK, SLOW = 154, 7_600  # mutations of a kind of file: 2,032 and 100,320 in all, since two kinds take a tenth
TENTH = ("config", "responses")
LONGEST, LARGEST = 10.0, 1 << 30  # seconds for one, bytes for all
MIB = {
    "cfg": {"n_layers": 2, "n_heads": 2, "d_model": 8, "parallel_attn_mlp": False},
    "nodes": {"input": {"in_graph": True, "score": 1.0}, "a0.h1": {"in_graph": True, "score": 2.5},
              "m1": {"in_graph": False, "score": -0.5}, "logits": {"in_graph": True, "score": None}},
    "edges": {"input->a0.h1<q>": {"in_graph": True, "score": 0.25}, "a0.h1->logits": {"in_graph": True, "score": 1.5}},
}  # fmt: skip
VALUES = (
    None, True, False, 0, -1, 1, 3, 0.5, -0.5, 1e308, -1e308, 1e-320, 2**63, 10**400, "", "x", "a0.h0", "a9.h99", "1",
    "nan", "\x00", "\ud800", "\x1b]0;x\x07", "<b>", "RECOVERED", "[m0.n0:99999999]", "a0.h" + "9" * 400, "../x", [], {},
    [[]], [None], [1, "x"], ["a0.h0", "a0.h0"], {"a": 1}, {"name": "softplus"}, "é" * 300, float("nan"), float("inf"),
)  # fmt: skip
GONE, DOUBLED, ADDED = object(), object(), object()


def places(value, path=()):
    """The path of everything in a JSON value."""
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(item, (*path, key))


def changed(value, path, new):
    """The same value with one thing in it replaced, left out, doubled, or a field added beside it."""
    if not path:
        return new if new not in (GONE, DOUBLED, ADDED) else [value]
    value = copy.deepcopy(value)
    inside = value
    for key in path[:-1]:
        inside = inside[key]
    if new is GONE:
        del inside[path[-1]]
    elif new in (DOUBLED, ADDED):
        if isinstance(inside, list):
            inside.insert(path[-1], inside[path[-1]])
        else:
            inside["extra \x1b[2J"] = inside[path[-1]]
    else:
        inside[path[-1]] = new
    return value


def as_toml(record):
    """Tables of plain values; what TOML has no word for is a text."""

    def word(value):
        if isinstance(value, list):
            return f"[{', '.join(map(word, value))}]"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(str(k))} = {word(v)}" for k, v in value.items()) + "}"
        return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf") if value is not None else '"null"'

    return "\n".join(f"{json.dumps(str(key))} = {word(value)}" for key, value in record.items())


class Desk:
    """A run folder with its audit, a card, and files of other tools; and what is done with each."""

    def __init__(self, folder):
        self.folder = folder
        subject = planted.conjunction(("a0.h1", "a1.h0"), layout=planted.PlantedLayout(n_layers=2, n_heads=4))
        task = planted.task(n_prompts=2, seed=0)
        self.run = folder / "run"
        self.found = sm.discover(subject, task, budget=120, decoder="proxyspex", link="identity", out=self.run)
        sm.audit(self.found, subject, task, budget=96).save(self.run / "audit.json")
        (self.run / "study.json").write_text('{"schema": "spex_mech.study/1", "what": "planted-and", "prompts": null}')
        shutil.copytree(CARD, folder / "card")
        for name in ("hif", "neuronpedia"):
            export(self.found.circuit, folder / name, to=name)
        (folder / "mib").write_text(json.dumps(MIB))
        (folder / "one.jsonl").write_text((CARD / "prompts.jsonl").read_text().splitlines()[0])
        shutil.copytree(CARD.parent / "induction-2l" / "model", folder / "native")
        with safe_open(self.run / "responses.safetensors", "pt") as file:
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = {k: json.loads(v) if v[0] in "[{" else v for k, v in file.metadata().items()}
        (folder / "metadata.json").write_text(json.dumps(metadata))

    def files(self):
        run, card = self.run, self.folder / "card"
        return {
            "run": (run / "run.json", self.show_run),
            "spectrum": (run / "spectrum.json", lambda: load_spectrum(run / "spectrum.json", self.found.components)),
            "circuit": (run / "circuit.json", lambda: self.show_circuit(run / "circuit.json") or sm.load_run(run)),
            "audit": (run / "audit.json", self.show_audit),
            "study": (run / "study.json", lambda: (sm.report(run), reopen(run))),
            "card": (card / "card.toml", lambda: str(sm.open_card(card))),
            "published": (card / "published.json", lambda: str(sm.open_card(card))),
            "truth": (card / "truth.json", lambda: str(sm.open_card(card))),
            "planted": (card / "model" / "planted.json", lambda: sm.open_study(card)),
            "prompts": (self.folder / "one.jsonl", lambda: str(sm.Task.from_jsonl(self.folder / "one.jsonl"))),
            "config": (self.folder / "native" / "config.json", lambda: sm.load_model(self.folder / "native")),
            "responses": (self.folder / "metadata.json", self.show_responses),
            **{name: (self.folder / name, lambda name=name: self.show_circuit(self.folder / name))
               for name in ("hif", "mib", "neuronpedia")},
        }  # fmt: skip

    def show_responses(self):
        """What stands in the header of a file of responses, each text of it JSON of its own."""
        path = self.folder / "responses.safetensors"
        record = json.loads((self.folder / "metadata.json").read_text())
        if not isinstance(record, dict):
            raise SpexMechError("safetensors holds texts by name")
        texts = {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in record.items()}
        try:
            save_file(self.tensors, path, {k: v for k, v in texts.items() if v.isprintable()})
        except UnicodeEncodeError:
            raise SpexMechError("safetensors holds UTF-8") from None
        found = sm.Responses.load(path)
        str(found), found.frame(), sm.report(replace(self.found, responses=found))

    def show_run(self):
        found = sm.load_run(self.run)
        str(found), found._repr_html_(), found.interactions(), sm.report(self.run)

    def show_audit(self):
        found = sm.load_audit(self.run / "audit.json")
        str(found), found._repr_html_(), found.interactions_frame(), sm.report(self.run)

    def show_circuit(self, path):
        circuit = sm.read_circuit(path)
        str(circuit), circuit._repr_html_(), circuit.frame(), circuit.nodes_frame()
        for name in EXPORTERS:
            try:
                export(circuit, self.folder / "out", to=name)
            except SpexMechError:  # what a format has no place for
                continue

    def throw(self, name, count):
        """So many changes; what is neither read nor refused, with its number of times."""
        path, show = self.files()[name]
        text, dice, bad = path.read_text(), random.Random(name), Counter()
        record = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
        spots = list(places(record))
        refused, slowest = 0, (0.0, "")
        try:
            for number in range(count):
                spot = spots[number % len(spots)]
                new = dice.choice((*VALUES, GONE, GONE, DOUBLED, ADDED))
                mutant = changed(record, spot, new)
                toml = path.suffix == ".toml" and isinstance(mutant, dict)
                path.write_bytes((as_toml(mutant) if toml else json.dumps(mutant)).encode(errors="surrogatepass"))
                started = time.monotonic()
                try:
                    show()
                except SpexMechError:
                    refused += 1
                except Exception as error:  # the point of the test
                    frame = error.__traceback__
                    while frame.tb_next is not None:
                        frame = frame.tb_next
                    where = f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}"
                    bad[f"{type(error).__name__} at {where}: {error!s:.80} after {spot} = {new!r:.40}"] += 1
                slowest = max(slowest, (time.monotonic() - started, f"{spot} = {new!r:.40}"))
        finally:
            path.write_text(text)
        assert slowest[0] < LONGEST, slowest
        return bad, refused


KINDS = (
    "run", "spectrum", "circuit", "audit", "study", "card", "published", "truth", "planted", "prompts", "config",
    "responses", "hif", "mib", "neuronpedia",
)  # fmt: skip


def memory():
    """The most that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    def refuse(name, *_):
        raise sm.SpexMechError(f"{name!r} is asked of no hub in tests")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spex_mech.ablation.load._from_hub", refuse)
        yield Desk(tmp_path_factory.mktemp("desk"))


@pytest.mark.parametrize("kind", KINDS)
def test_one_wrong_field_is_read_or_refused(desk, kind):
    before = memory()
    bad, refused = desk.throw(kind, QUICK // 10 if kind in TENTH else QUICK)
    assert not bad
    assert refused
    assert memory() - before < LARGEST


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", KINDS)
def test_many_wrong_fields_are_read_or_refused(desk, kind):
    before = memory()
    bad, _ = desk.throw(kind, SLOW // 10 if kind in TENTH else SLOW)
    assert not bad
    assert memory() - before < LARGEST
