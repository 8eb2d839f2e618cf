"""Files from strangers: read, or refused by one error of ours; whatever is in them."""

import json
import random
import shutil
import sqlite3
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.api.shards import Shard, merge_shards
from spex_mech.auditing.run_audit import load_audit
from spex_mech.errors import FormatError, ModelError, SpexMechError
from spex_mech.formats.interchange import export
from spex_mech.gallery import open_card
from spex_mech.gallery.studies import reopen
from spex_mech.measuring.journal import JOURNAL, open_journal
from spex_mech.store.discovery import whole_key
from spex_mech.store.responses import pack_bits
from spex_mech.store.spectrum_file import load_spectrum

CARD = Path(__file__).resolve().parents[1] / "circuits" / "planted-and"
SHARE = 8_300  # inputs a target in the slow test, of which there are twelve and two slow ones
MIB = json.dumps({
    "cfg": {"n_layers": 2, "n_heads": 2, "d_model": 8, "parallel_attn_mlp": False},
    "nodes": {"input": {"in_graph": True, "score": 1.0}, "a0.h1": {"in_graph": True, "score": 2.5},
              "m1": {"in_graph": False, "score": -0.5}, "logits": {"in_graph": True, "score": None}},
    "edges": {"input->a0.h1<q>": {"in_graph": True, "score": 0.25}, "a0.h1->logits": {"in_graph": True, "score": 1.5},
              "a0.h1->m1": {"in_graph": False, "score": 0.1}},
})  # fmt: skip
DEEP = "[" * 3000
HOSTILE = (
    None, True, False, 0, -1, 1, 2, 1e308, -1e308, 1e-320, 2**31, 2**63, 10**400, 0.5, "", "x", "a0.h0", "a9.h99", "m0",
    "a*.h*", "[m0.n0:4096]", "[m0.n0:99999999999999]", "a0.h" + "9" * 500, "../../etc/passwd", "/etc/passwd", "\x00",
    "\ud800", "<script>alert(1)</script>", "{{7*7}}", "__class__", "spex_mech.circuit/999", "9" * 5000, [], {}, [[]],
    [None] * 100, {"": ""}, ["a0.h0"] * 50, {"a0.h0": {"a0.h0": []}}, "model", "..", ".", "C:\\x", "~", "file:///x",
)  # fmt: skip


def mangled(value, dice):
    """A JSON value with one thing in it replaced, left out, doubled or added."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        key, found = dice.choice(list(value)), dict(value)
        action = dice.random()
        if action < 0.7:
            found[key] = mangled(value[key], dice)
        elif action < 0.85:
            del found[key]
        else:
            found[str(dice.choice(HOSTILE))] = dice.choice(HOSTILE)
        return found
    if isinstance(value, list) and value and dice.random() < 0.9:
        place, found = dice.randrange(len(value)), list(value)
        action = dice.random()
        if action < 0.7:
            found[place] = mangled(value[place], dice)
        elif action < 0.85:
            del found[place]
        else:
            found.insert(place, value[place])
        return found
    return dice.choice(HOSTILE)


def mangled_text(text, dice):
    """JSON with something else in it, or text with something cut out, doubled, or that is no text at all."""
    data = text.encode()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if value is not None and dice.random() < 0.7:
        for _ in range(dice.choice((1, 1, 2, 5))):
            value = mangled(value, dice)
        data = json.dumps(value).encode()
    for _ in range(dice.choice((0, 1, 4)) if value is not None else dice.choice((1, 2, 6))):
        start = dice.randrange(len(data) + 1)
        stop = start + dice.choice((0, 1, 1, 8, 60))
        word = dice.choice((b"", b"", DEEP.encode(), b"\xff\x00", b"NaN", b"1e999", b'"', b"}", data[start:stop] * 3))
        word = json.dumps(dice.choice(HOSTILE)).encode() if dice.random() < 0.3 else word
        data = data[:start] + word + data[stop:]
    return data


def mangled_lines(text, dice):
    """The same for files of one JSON value a line, or one setting a line."""
    lines = [line.encode() for line in text.splitlines()]
    for _ in range(dice.choice((1, 2, 4))):
        place = dice.randrange(len(lines))
        lines[place] = mangled_text(lines[place].decode(errors="replace"), dice)
        if dice.random() < 0.2:
            del lines[place]
            lines = lines or [b""]
    return b"\n".join(lines)


class Desk:
    """One sound file of every kind, and what reads it."""

    def __init__(self, folder):
        self.folder = folder
        subject = planted.conjunction(("a0.h1", "a1.h0"), layout=planted.PlantedLayout(n_layers=2, n_heads=2))
        task = planted.task(n_prompts=2, seed=0)
        run = folder / "run"
        self.found = sm.discover(subject, task, budget=12, decoder="linear", link="identity", out=run)
        audit = sm.audit(self.found, subject, task, budget=96)
        audit.save(run / "audit.json")
        export(self.found.circuit, folder / "c.hif.json", to="hif")
        (folder / "c.mib.json").write_text(MIB)
        (run / "study.json").write_text('{"schema": "spex_mech.study/1", "what": "planted-and", "prompts": null}\n')
        shutil.copytree(CARD, folder / "card")
        for _, read in self.targets.values():
            assert read is None or read() is not None
        self.text = {name: (folder / file).read_text() for name, (file, _) in self.targets.items() if file}

    @property
    def targets(self):
        run, card = self.folder / "run", self.folder / "card"
        return {
            "circuit": ("run/circuit.json", lambda: sm.read_circuit(run / "circuit.json")),
            "run": ("run/run.json", lambda: sm.load_run(run)),
            "spectrum": ("run/spectrum.json", lambda: load_spectrum(run / "spectrum.json", self.found.components)),
            "audit": ("run/audit.json", lambda: load_audit(run / "audit.json")),
            "study": ("run/study.json", lambda: reopen(run)),
            "hif": ("c.hif.json", lambda: sm.read_circuit(self.folder / "c.hif.json")),
            "card": ("card/card.toml", lambda: open_card(card)),
            "published": ("card/published.json", lambda: open_card(card)),
            "prompts": ("card/prompts.jsonl", lambda: sm.Task.from_jsonl(card / "prompts.jsonl")),
            "planted": ("card/model/planted.json", lambda: planted.load_planted(card / "model")),
            "mib": ("c.mib.json", lambda: sm.read_circuit(self.folder / "c.mib.json")),
            "responses": (None, None),
            "shares": (None, None),
            "journal": (None, None),
        }

    def throw(self, name, seed):
        """One hostile input; True where it was refused."""
        dice = random.Random(f"{name} {seed}")
        if name == "responses":
            return self.throw_responses(dice)
        if name == "journal":
            return self.throw_journal(dice)
        if name == "shares":
            return self.throw_shares(dice)
        file, read = self.targets[name]
        lines = name in ("card", "prompts")
        (self.folder / file).write_bytes((mangled_lines if lines else mangled_text)(self.text[name], dice))
        try:
            read()
        except SpexMechError:
            return True
        finally:
            (self.folder / file).write_text(self.text[name])
        return False

    def throw_responses(self, dice):
        """The header of safetensors is JSON; its metadata holds JSON again."""
        from safetensors.torch import save

        path, found = self.folder / "r.safetensors", self.found.responses
        tensors = {"keep": pack_bits(found.keep), "values": found.values}
        metadata = {"schema": "spex_mech.responses/1", "unit": "logit", "components": "", "provenance": ""}
        metadata["components"] = mangled_text(json.dumps(list(found.components.names)), dice).decode(errors="replace")
        metadata["provenance"] = mangled_text(json.dumps(found.provenance), dice).decode(errors="replace")
        if dice.random() < 0.3:
            del metadata[dice.choice(list(metadata))]
        if dice.random() < 0.3:
            tensors[dice.choice(("keep", "values"))] = torch.zeros(dice.choice(((0,), (3, 1), (12, 0), (2, 2, 2))))
        path.write_bytes(save(tensors, metadata))
        try:
            sm.Responses.load(path)
        except SpexMechError:
            return True
        return False

    def throw_journal(self, dice):
        """A journal with rows of any type in it gives the values that were written, or none."""
        folder = self.folder / "journal"
        shutil.rmtree(folder, ignore_errors=True)
        keep = pack_bits(torch.ones(3, 4, dtype=torch.bool))
        with open_journal(folder, {"a": 1}) as journal:
            journal.write(0, keep, torch.ones(3, 2))
            journal.settle("batch_rows", lambda: {"3": 8})
        with sqlite3.connect(folder / JOURNAL) as connection:
            column = dice.choice(("first", "prompts", "keep", "numbers", "sha256"))
            value = dice.choice((None, 0, -1, 7, 2**62, 0.5, "", "x", b"", b"\x00" * 24, b"\xff" * 7, "\ufffd"))
            try:
                connection.execute(f"UPDATE chunks SET {column} = ?", (value,))
                if dice.random() < 0.5:
                    connection.execute("UPDATE about SET value = ? WHERE key = 'batch_rows'", (value,))
            except sqlite3.Error:
                pass  # what the table itself refuses
        connection.close()
        with open_journal(folder, {"a": 1}) as journal:
            values = journal.read(0, keep)
            journal.settle("batch_rows", lambda: {"3": 8})
        assert values is None or torch.equal(values, torch.ones(3, 2))
        return values is None

    def throw_shares(self, dice):
        """A share whose record of the experiment is not what it was, though its checksum is right."""
        share, merged = self.folder / "share", self.folder / "merged"
        for folder in (share, merged):
            shutil.rmtree(folder, ignore_errors=True)
        key = whole_key(self.found.record, self.found.components)
        for _ in range(dice.choice((1, 1, 3))):
            changed = mangled(key, dice)
            key = changed if isinstance(changed, dict) else key
        with open_journal(share, key) as journal:
            for name, value in (("unit", "logit"), ("threads", 1), ("batch_rows", {"3": 8})):
                journal.settle(name, lambda value=value: value)
            values = torch.ones(12, dice.choice((1, 2, 2, 2, 3)))
            journal.write(0, pack_bits(self.found.responses.keep), values)
        try:
            merge_shards([share], merged)
        except SpexMechError:
            return True
        return False


SLOW_TARGETS = ("journal", "shares")  # a file of SQLite each
TARGETS = (
    "circuit", "run", "spectrum", "audit", "study", "hif", "mib", "card", "published", "prompts", "planted",
    "responses", *SLOW_TARGETS,
)  # fmt: skip


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    def refuse(name, *_):
        raise ModelError(f"{name!r} is asked of no hub in tests")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("spex_mech.ablation.load._from_hub", refuse)
        yield Desk(tmp_path_factory.mktemp("desk"))


@pytest.mark.filterwarnings("ignore:.*(measured again|begun anew)")
@pytest.mark.parametrize("name", TARGETS)
def test_hostile_files_are_read_or_refused(desk, name):
    refused = [desk.throw(name, seed) for seed in range(20 if name in SLOW_TARGETS else 80)]
    assert any(refused)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore:.*(measured again|begun anew)")
@pytest.mark.parametrize("name", TARGETS)
def test_many_hostile_files_are_read_or_refused(desk, name):
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(400 if name in SLOW_TARGETS else SHARE):
        desk.throw(name, 1000 + seed)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 512 << 10  # KiB


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=400))
@pytest.mark.parametrize("name", ["circuit", "run", "card", "prompts", "planted"])
def test_any_bytes_are_read_or_refused(desk, name, content):
    file, read = desk.targets[name]
    (desk.folder / file).write_bytes(content)
    try:
        read()
    except SpexMechError:
        pass
    finally:
        (desk.folder / file).write_text(desk.text[name])


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="0123456789/ -+e١²", max_size=12))
def test_any_text_is_a_shard_or_a_design_error(text):
    try:
        shard = Shard.parse(text)
    except SpexMechError:
        return
    assert 1 <= shard.part <= shard.parts


@pytest.mark.parametrize(
    "path", ["../other", "/etc", "model/../../x", "model/./../..", "..", "model\\..\\x", "x" * 300]
)
def test_a_card_does_not_leave_its_folder(tmp_path, path):
    shutil.copytree(CARD, tmp_path / "card")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "planted.json").write_text((CARD / "model" / "planted.json").read_text())
    toml = tmp_path / "card" / "card.toml"
    toml.write_text(toml.read_text().replace('path = "model"', f"path = {path!r}"))
    with pytest.raises(FormatError, match=r"leaves the card's folder|is no path"):
        open_card(tmp_path / "card")


def test_a_few_short_names_do_not_fill_the_memory():
    names = [f"[m{layer}.n0:262144]" for layer in range(40)]
    with pytest.raises(SpexMechError, match="spell out more than 1,048,576 components in all"):
        sm.ComponentSet.of(names)


def test_a_few_digits_do_not_fill_the_memory(tmp_path):
    record = json.loads((CARD / "model" / "planted.json").read_text())
    (tmp_path / "planted.json").write_text(json.dumps({**record, "n_layers": 1000, "d_mlp": 100_000}))
    with pytest.raises(FormatError, match=r"heads and neurons; a planted subject has at most 262,144"):
        planted.load_planted(tmp_path)
