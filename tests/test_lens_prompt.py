"""Components and parts of the prompt under one keep matrix: what the model reads, and what is found."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from tiny_models import bridge_of, tiny, tokens_task

import spex_mech as sm
from spex_mech.ablation.binding import bind
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import respond
from spex_mech.ablation.subject import Site
from spex_mech.components import ModelShape
from spex_mech.errors import ComponentError, TaskError
from spex_mech.gallery.studies import open_subject, reopen, save_source
from spex_mech.tasks.task import Task

SILENT, WORD = 3, 7  # tokens


@dataclass(frozen=True, eq=False)
class Watcher:
    """Planted: a0.h1 acts only where WORD stands at position 1, a0.h0 always; they add 2 and 1 to the answer."""

    device: torch.device = torch.device("cpu")
    sites = (Site(0, "heads", 4, 1),)
    shape = ModelShape("watcher", (4,), (4,), (False,), (0,), 9)
    provenance = MappingProxyType({"model": "watcher", "weights_sha256": "0"})

    def forward(self, tokens, edits, positions):
        acting = torch.ones(*tokens.shape, 4)
        acting = edits[self.sites[0]](acting) if self.sites[0] in edits else acting
        there = (tokens[:, 1:2] == WORD).float()
        logits = torch.zeros(*acting.shape[:2], 9)
        logits[..., 1] = 2 * acting[..., 1] * there + acting[..., 0]
        return logits if positions is None else logits[torch.arange(len(logits)), positions]


def watched(**options):
    rows = {"tokens": [[5, WORD, 2, 4], [6, WORD, 8, 0]], "answers": [1, 1], "distractors": [[0], [0]]}
    return Task(**{**rows, "corrupt": [[5, SILENT, 2, 4], [6, SILENT, 8, 0]], **options})


@pytest.mark.parametrize("filler", ["corrupt", SILENT])
def test_a_head_that_acts_only_where_a_word_is_makes_exactly_that_pair(filler):
    subject, task = sm.with_prompt(Watcher(), watched(), filler=filler), watched()
    found = sm.discover(subject, task, components="a*.h*, t*", replacement="zero", budget=256)
    names, mobius = found.components.names, found.spectrum.rewrite(sm.Basis("mobius")).mean_output()
    sets = {tuple(names[i] for i in s): c for s, c in mobius.terms() if s and abs(c) > 1e-4}
    assert sets == {("a0.h0",): pytest.approx(1.0), ("a0.h1", "t1"): pytest.approx(2.0)}
    pairs = [(i.components, i.kind) for i in found.circuit.interactions if i.order > 1]
    assert pairs == [(("a0.h1", "t1"), "synergy")]


@pytest.mark.parametrize("replacement", ["mean", "resample"])
def test_tokens_are_let_go_whatever_replaces_heads(replacement):
    """These heads are constant, so their mean, or what they give elsewhere, changes nothing; the word still does."""
    subject = sm.with_prompt(Watcher(), watched())
    found = sm.discover(subject, watched(), components="a*.h*, t*", replacement=replacement, budget=256)
    assert [(i.components, i.coefficient) for i in found.circuit.interactions] == [(("t1",), pytest.approx(1.0))]


@pytest.mark.parametrize("bound", [bind, bridge_of])
@pytest.mark.parametrize("replacement", ["mean", "zero", "resample"])
@pytest.mark.parametrize("filler", ["corrupt", 11])
def test_values_are_those_of_the_model_on_the_tokens_that_are_left(bound, replacement, filler):
    """The oracle: the model alone, with its heads ablated by the same values, on prompts whose tokens were changed."""
    model, task = bind(bound(tiny("gpt2"))), tokens_task(3, 7)
    subject = sm.with_prompt(model, task, [(0, 2), (4, 5)], filler=filler)
    components = sm.select(subject, "s1, a*.h*, m1, s0")
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(12, len(components), generator=generator) < 0.5
    keep[0] = True
    reference = fit_replacement(subject, task, components, replacement)
    got = respond(subject, task, components, [keep], reference)
    plain = sm.select(model, "a*.h*, m1")
    fitted = fit_replacement(model, task, plain, replacement)
    tokens = task.prompts.tokens
    other = task.corrupt.tokens if filler == "corrupt" else torch.full_like(tokens, filler)
    for mask, row in zip(keep, got, strict=True):
        left = tokens.clone()
        for (start, stop), bit in (((0, 2), -1), ((4, 5), 0)):
            if not mask[bit]:
                left[:, start:stop] = other[:, start:stop]
        changed = Task(tokens=left, answers=task.answers, distractors=task.distractors, positions=task.positions)
        expected = respond(model, changed, plain, [mask[None, 1:-1]], fitted)
        assert torch.allclose(row, expected[0], atol=2e-4)
    assert float(got.std(0).min()) > 0.01
    assert len({round(float(v), 3) for v in got[:, 0]}) > 6


def test_names_shapes_and_roles_of_both_kinds(tmp_path):
    class Words:
        def decode(self, ids):
            return " ".join(f"w{i}" for i in ids)

    subject = sm.with_prompt(Watcher(), watched(), [(1, 2), (0, 1)], filler=SILENT, tokenizer=Words())
    assert subject.shape.segments == 2
    assert sm.select(subject, "s*, !s1, a0.h0").names == ("s0", "a0.h0")
    for wrong in ("s2", "t0", "d0"):
        with pytest.raises(ComponentError, match=r"2 segments"):
            sm.select(subject, wrong)
    found = sm.discover(subject, watched(), "a0.h1, s0, s1", replacement="zero", budget=8, out=tmp_path)
    assert {n.name: n.role for n in found.circuit.nodes} == {"a0.h1": None, "s0": "w7"}
    assert found.record["subject"]["prompt_parts"]["texts"]["s1"] == "w5 / w6"
    loaded = sm.load_run(tmp_path)
    assert loaded.circuit.nodes == found.circuit.nodes
    page = sm.report(found).html
    assert "Segments" in page
    assert "a0.h1" in page
    assert "w7" in page
    sm.export(found.circuit, tmp_path / "c.dot", to="dot")
    assert '/* input */ "s0"' in (tmp_path / "c.dot").read_text()
    axes = sm.plot.circuit(found.circuit).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["prompt", "layer 0"]
    one = sm.discover(subject, watched(), "[s0:2], a0.h1", replacement="zero", budget=4)
    assert one.components.names == ("[s0:2]", "a0.h1")


def test_the_circuit_goes_back_into_calls():
    task = watched()
    subject = sm.with_prompt(Watcher(), task)
    tokens = task.prompts.tokens
    for replacement in ("zero", "mean"):
        with sm.ablated(subject, task=task, ablate="t1", replacement=replacement) as call:
            assert call(tokens)[:, -1, 1].tolist() == [1.0, 1.0]
        with sm.ablated(subject, task=task, ablate="t0, t2", replacement=replacement) as call:
            assert call(tokens)[:, -1, 1].tolist() == [3.0, 3.0]
            with pytest.raises(TaskError, match="rows"):
                call(tokens[:1])
    with pytest.raises(TaskError, match="corrupt"), sm.ablated(subject, ablate="t1", replacement="zero"):
        pass


def test_an_audit_of_both_kinds_confirms_the_pair():
    task = watched()
    subject = sm.with_prompt(Watcher(), task)
    found = sm.discover(subject, task, "a0.h*, t*", replacement="zero", budget=256)
    audit = sm.audit(found, subject, task, budget=256)
    assert ("a0.h1", "t1") in {f.components for f in audit.confirmed}


@pytest.mark.parametrize(
    ("parts", "filler", "message"),
    [([(0, 5)], 3, "shortest prompt"), ([(0, 2), (1, 3)], 3, "share"), ([], 3, "none"), ([(1, 1)], 3, "first position"),
     ("tokens", 99, "no token"), ("tokens", "corrupt", "none of the same")],
)  # fmt: skip
def test_parts_that_cannot_be(parts, filler, message):
    with pytest.raises(TaskError, match=message):
        sm.with_prompt(Watcher(), watched(corrupt=None), parts, filler=filler)
    with pytest.raises(TaskError, match="already"):
        sm.with_prompt(sm.with_prompt(Watcher(), watched()), watched())


def card_with_lens(folder, lens):
    shutil.copytree(Path(sm.open_card("planted-and").folder), folder)
    path = folder / "card.toml"
    path.write_text(re.sub('default = "[^"]*"', 'default = "a0.h*, t*"', path.read_text(), count=1) + lens)
    for name in ("truth.json", "truth.safetensors", "found.json", "responses.safetensors", "published.json"):
        (folder / name).unlink(missing_ok=True)
    return folder


def test_a_card_may_name_parts_of_its_prompts(tmp_path):
    card = card_with_lens(tmp_path / "card", '\n[lens]\nparts = "tokens"\n')
    study = sm.open_study(card)
    assert study.components.names[-3:] == ("t0", "t1", "t2")
    assert open_subject(card).provenance == study.subject.provenance
    run = tmp_path / "run"
    sm.discover(study.subject, study.task, study.components, budget=128, out=run)
    save_source(run, card)
    again = reopen(run)
    assert again.components.names == study.components.names
    assert "Tokens" in sm.report(run).html


@pytest.mark.parametrize(
    ("lens", "message"),
    [('parts = "words"', "lens.parts must be tokens or a list of lists"), ("parts = [[3, 1]]", "after the last"),
     ('parts = "tokens"\nfiller = -1', "or a token"),
     ("parts = []", "parts is"), ('tokens = "x"', "lens.tokens is not a field")],
)  # fmt: skip
def test_a_lens_of_a_card_that_cannot_be(tmp_path, lens, message):
    with pytest.raises(sm.SpexMechError, match=message):
        sm.open_card(card_with_lens(tmp_path / "card", f"\n[lens]\n{lens}\n"))
