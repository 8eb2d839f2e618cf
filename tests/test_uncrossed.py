"""Runs in which a mask meets some prompts: what is asked, what is paid, kills, shards, pilots, and every reader."""

import json
from dataclasses import replace

import pytest
import torch

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.ablation.respond import Engine
from spex_mech.api.discover import decode, discover
from spex_mech.api.plan import plan_run
from spex_mech.api.shards import Shard, merge_shards, respond_shard
from spex_mech.auditing.circuit_search import MeasuredSets
from spex_mech.auditing.resampled_halves import try_stability
from spex_mech.cli import main as cli
from spex_mech.errors import DecodeError, DesignError, ResponseError
from spex_mech.measuring.ask import Ask
from spex_mech.measuring.crossing import MOST_UNCROSSED, settle_rows
from spex_mech.measuring.measure import measure_in
from spex_mech.measuring.pilot import plan_pilot
from spex_mech.store.responses import Responses
from spex_mech.store.set_losses import losses_of
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.masks.prompt_design import PromptDesign

PROMPTS = 4
LAYOUT = planted.PlantedLayout(n_layers=2, n_heads=6, d_mlp=2)
TERMS = {("a0.h1", "a1.h2"): 1.5, ("a0.h1",): 0.8, ("m0.n1", "a1.h0"): -0.9, (): 0.3}


@pytest.fixture(scope="module")
def question():
    return planted.polynomial(TERMS, layout=LAYOUT, spread=0.3), planted.task(PROMPTS, seed=0)


ASKED = {"components": "a*.h*, m*.n*", "decoder": "linear", "link": "identity", "keep_prob": 0.7, "rows": 2500}
ONE = {**ASKED, "prompts_per_mask": 1}


@pytest.fixture
def passed(monkeypatch):
    """How many rows the engine was asked for, call by call."""
    rows, honest = [], Engine.values

    def values(self, keep, met=None):
        rows.append(len(keep) * (len(self.task) if met is None else met.shape[1]))
        return honest(self, keep, met)

    monkeypatch.setattr(Engine, "values", values)
    return rows


@pytest.fixture(scope="module")
def found(question):
    return discover(*question, **ONE)


def test_values_are_those_of_the_crossed_run_of_the_same_masks(question, found):
    run = found.responses
    crossed = discover(*question, **ASKED | {"rows": None, "budget": 2500})
    first = 2500 - found.record["design"]["again"]
    assert torch.equal(run.keep[:first], crossed.responses.keep[:first])
    gap = run.values[:first] - crossed.responses.values.gather(1, run.met[:first]) if len(run) == 2500 else None
    assert gap is not None
    assert gap.abs().max() <= 1e-6
    assert found.record["crossing"] == {"masks": 2500, "prompts": 4, "per_mask": 1, "reason": "as asked"}
    assert found.record["rows"] == 2500
    assert "prompt_design" in found.record
    assert "prompt_design" not in crossed.record


def test_a_row_is_paid_once_and_equal_masks_only_where_they_meet_the_same_prompts(question, passed):
    few = ONE | {"components": "a0.h*", "rows": 400, "keep_prob": 0.9}
    run = discover(*question, **few).responses
    rows = {(tuple(mask), tuple(met)) for mask, met in zip(run.keep.tolist(), run.met.tolist(), strict=True)}
    assert sum(passed) == len(rows) < 400
    assert len(run.keep.unique(dim=0)) < len(rows)  # an equal mask met other prompts too
    seen = {}
    for mask, met, value in zip(run.keep.tolist(), run.met.tolist(), run.values.tolist(), strict=True):
        assert seen.setdefault((tuple(mask), tuple(met)), value) == value


def test_killed_at_any_chunk_it_goes_on_to_the_same_bits(question, found, tmp_path, monkeypatch, passed):
    honest, calls = Engine.values, []

    def dying(self, keep, met=None):
        calls.append(len(keep))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return honest(self, keep, met)

    monkeypatch.setattr(Engine, "values", dying)
    with pytest.raises(KeyboardInterrupt):
        discover(*question, **ONE, out=tmp_path)
    assert all(900 < masks <= 1024 for masks in calls[:2])  # 256 masks a prompt in a chunk, less those passed before
    monkeypatch.setattr(Engine, "values", honest)
    passed.clear()
    again = discover(*question, **ONE, out=tmp_path)
    assert sum(passed) <= 2500 - 2048
    assert again.record["resumed_masks"] == 2048
    assert torch.equal(again.responses.values, found.responses.values)
    assert torch.equal(again.responses.met, found.responses.met)
    passed.clear()
    assert torch.equal(discover(*question, **ONE, out=tmp_path).responses.values, found.responses.values)
    assert not passed
    with pytest.raises(ResponseError, match=r"prompt_design|design"):
        discover(*question, **ONE | {"prompts_per_mask": 2, "rows": 5000}, out=tmp_path)
    loaded = sm.load_run(tmp_path)
    assert torch.equal(loaded.responses.met, found.responses.met)
    assert str(loaded) == str(again)


def test_shares_merge_to_the_run_whatever_is_missing_is_named(question, found, tmp_path):
    for part in (1, 2):
        told = respond_shard(
            *question, **{k: v for k, v in ONE.items() if k != "link"}, out=tmp_path / str(part), shard=Shard(part, 2)
        )
    assert told == {"masks": 1024, "resumed_masks": 0}
    with pytest.raises(ResponseError, match=r"1 of 3 chunks are missing(.|\n)*2/2 \(not given\)"):
        merge_shards([tmp_path / "1"], tmp_path / "part")
    merged = merge_shards([tmp_path / "2", tmp_path / "1"], tmp_path / "whole")
    assert torch.equal(merged.values, found.responses.values)
    assert torch.equal(merged.met, found.responses.met)
    assert merged.prompts == PROMPTS
    assert merged.provenance == found.responses.provenance
    again = discover(*question, **ONE, out=tmp_path / "whole")
    assert again.record["resumed_masks"] == 2500


def test_another_run_of_the_chunks_gives_the_same_bits(question, found, monkeypatch):
    def backwards(lens, work):
        for first, *rows in reversed(list(work)):
            yield first, lens.values(*rows)

    monkeypatch.setattr("spex_mech.measuring.spine.choose_run", lambda *_: backwards)
    assert torch.equal(discover(*question, **ONE).responses.values, found.responses.values)


@pytest.mark.slow
def test_workers_give_the_same_bits(question, found):
    pytest.importorskip("ray")
    from spex_mech.measuring.workers import Workers

    def source():
        return planted.polynomial(TERMS, layout=LAYOUT, spread=0.3)

    run = discover(*question, **ONE, workers=Workers(source, 2))
    assert torch.equal(run.responses.values, found.responses.values)


@pytest.mark.parametrize("per_mask", [1, 3])
def test_a_pilot_knows_both_ends_and_is_the_beginning_of_the_run(question, passed, tmp_path, per_mask):
    asked = {**ASKED, "rows": 1200 * per_mask, "prompts_per_mask": per_mask, "keep_prob": "auto"}
    run = discover(*question, **asked, out=tmp_path)
    pilot, end = run.record["pilot"], -(-PROMPTS // per_mask)
    assert len(run.responses) + pilot["masks"] == 1200
    assert pilot["masks"] == 2 * end + 4 * pilot["masks_each"] <= 120
    assert sum(passed) <= 1200 * per_mask
    whole = Engine.values(_engine(question), torch.tensor([[True], [False]]).expand(2, 16)).double().mean(1)
    assert pilot["intact"] == pytest.approx(float(whole[0]), abs=1e-5)
    assert pilot["empty"] == pytest.approx(float(whole[1]), abs=1e-5)
    passed.clear()
    assert torch.equal(discover(*question, **asked, out=tmp_path).responses.values, run.responses.values)
    assert not passed


def _engine(question):
    from spex_mech.ablation.model_parts import ModelParts

    return ModelParts.of(*question, ASKED["components"]).engine("mean", per=None, seed=0)


def test_a_pilot_does_not_take_what_prompts_differ_by_for_what_masks_do():
    design = MaskDesign.stratified(8, 2000, (0.5, 0.9), seed=1)
    deal = PromptDesign.beside(design, 10, 1)
    pilot = plan_pilot(design, deal)
    keep, met = pilot.keep(), pilot.met
    levels = 5 * torch.randn(10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    line = keep.double() @ torch.arange(8).double()  # an effect that prompts agree on, at levels they do not
    values = (line + levels[met[:, 0]])[:, None]
    assert torch.allclose(pilot.headline(values), line + levels.mean())
    crossed = plan_pilot(design)
    assert torch.equal(crossed.keep()[:2], torch.tensor([[True], [False]]).expand(2, 8))
    assert crossed.met is None


def test_rows_or_masks_and_how_many_prompts():
    def told(n=20, prompts=16, **asked):
        crossing = settle_rows(n, prompts, Ask(**asked))
        return crossing.masks, crossing.per_mask, crossing.again

    assert told() == (1024, 16, 0)
    assert told(budget=300) == (300, 16, 0)
    assert told(rows=8192) == (8192, 1, 128)
    assert told(rows=2048) == (2048, 1, 64)
    assert told(rows=2048, decoder="linear") == (128, 16, 0)
    assert told(rows=MOST_UNCROSSED + 16) == (513, 16, 0)
    assert told(rows=200) == (200, 1, 48)
    assert told(rows=2048, prompts_per_mask="all") == (128, 16, 0)
    assert told(rows=2048, prompts_per_mask=1) == (2048, 1, 64)
    assert told(budget=2048, prompts_per_mask=2) == (2048, 2, 0)
    assert told(rows=2048, prompts_per_mask=16) == told(rows=2048, prompts_per_mask=99) == (128, 16, 0)
    assert told(prompts=1, rows=700, prompts_per_mask=1) == (700, 1, 0)
    assert told(n=6, rows=1024, prompts_per_mask=1) == (64, 16, 0)  # all 2^6 masks under all 16 prompts
    assert told(n=6, rows=1023, prompts_per_mask=1) == (1023, 1, 48)
    assert told(rows=70_000, keep_prob="coded") == (4375, 16, 0)
    assert told(rows=4096, shared_layers=2) == (256, 16, 0)
    assert told(prompts=100, rows=512, prompts_per_mask=1) == (512, 1, 48)
    for wrong, words in (
        ({"rows": 100, "budget": 100}, "both given"), ({"prompts_per_mask": 0}, "at least 1"),
        ({"prompts_per_mask": "some"}, "'auto', 'all' or a number"), ({"prompts_per_mask": True}, "number"),
        ({"rows": 0}, "rows=0"), ({"rows": 10.5}, "rows=10.5"), ({"rows": 10, "prompts_per_mask": "all"}, "one mask"),
        ({"rows": 9000, "prompts_per_mask": 1, "keep_prob": "coded"}, "coded masks: that needs every prompt"),
        ({"rows": 9000, "prompts_per_mask": 1, "decoder": "exact"}, "decoder 'exact'"),
        ({"rows": 9000, "prompts_per_mask": 1, "shared_layers": 2}, "shared_layers"),
    ):  # fmt: skip
        with pytest.raises(DesignError, match=words):
            settle_rows(20, 16, Ask(**wrong))


@pytest.mark.parametrize("asked", [{"rows": 64}, {"budget": 64, "prompts_per_mask": 1}])
def test_other_lenses_give_all_values_of_a_mask_at_one_price(asked):
    with pytest.raises(DesignError, match="at the price of one: every mask meets them all"):
        settle_rows(8, None, Ask(**asked))


def test_refinement_divides_the_masks_and_keeps_the_prompts_a_mask(question):
    run = discover(*question, **{**ONE, "rows": 1200}, refine=True)
    assert run.record["refined"]["masks"] <= 1200
    assert run.responses.values.shape[1] == 1
    assert run.responses.prompts == PROMPTS


def test_a_plan_tells_rows_masks_and_prompts_a_mask(question, passed):
    asked = {k: v for k, v in ONE.items() if k != "link"} | {"clock": iter(range(1000)).__next__}
    one, whole = plan_run(*question, **asked), plan_run(*question, **asked | {"prompts_per_mask": "all"})
    assert (one.masks, one.rows, one.prompts, one.prompts_per_mask, one.why_so_many) == (2500, 2500, 4, 1, "as asked")
    assert (whole.masks, whole.rows, whole.prompts_per_mask) == (625, 2500, 4)
    assert one.seconds / whole.seconds == pytest.approx(1, abs=0.1)  # a row costs what it costs crossed
    run = discover(*question, **ONE)
    assert one.distinct == len(torch.cat([run.responses.keep.long(), run.responses.met], 1).unique(dim=0))


def test_the_command_line_asks_and_tells_in_rows(tmp_path, capsys, monkeypatch):
    def said(*words):
        monkeypatch.setattr("sys.argv", ["spex-mech", *words])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out = capsys.readouterr()
        return stop.value.code, out.out + out.err

    code, told = said(
        "discover", "planted-and", "--out", str(tmp_path / "run"), "--rows", "640", "--prompts-per-mask", "2",
        "--decoder", "linear", "--components", "a*.h*",
    )  # fmt: skip
    assert code in (0, None), told
    assert " × 2 of " in told
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["rows"], record["crossing"]["per_mask"]) == (640, 2)
    assert " × 2 of " in (tmp_path / "run" / "report.html").read_text()
    code, told = said("discover", "planted-and", "--out", str(tmp_path / "x"), "--rows", "640", "--budget", "64")
    assert code == 2
    assert "both given" in told
    code, told = said("plan", "planted-and", "--rows", "640", "--prompts-per-mask", "1", "--components", "a*.h*")
    assert "640 masks" in told.replace("\n", " ")
    assert "prompts a mask: 1 of" in told


class Spent:
    """Passes that know the truth and count."""

    def __init__(self, question, responses):
        self.engine, self.masks = _engine(question), 0

    def values(self, keep):
        return self.engine.values(keep)

    def means(self, keep):
        self.masks += len(keep)
        return self.values(keep).double().mean(1)

    def cost(self, keep):
        return len(keep)


@pytest.mark.slow
def test_an_audit_measures_what_the_run_knows_of_some_prompts_only(question, found, tmp_path):
    audit = sm.audit(found, *question, budget=600)
    assert audit.record["masks"] <= 600
    assert any("stability over prompts" in line for line in audit.skipped)
    assert [row.over for row in audit.stability] in (["masks"], [])
    assert audit.circuit.method != "run"
    assert all(row.preserve.method != "run" for row in audit.sizes)
    # every value it reports is the metric's mean over all prompts
    engine = _engine(question)
    for row in audit.sizes:
        keep = torch.tensor([[name in row.preserve.names for name in found.components.names]])
        assert row.preserve.value == pytest.approx(float(engine.values(keep).double().mean()), abs=1e-5)
    for row in audit.replacements:
        assert row.r2 is None or row.r2 > 0.5  # of all prompts under both; one prompt's value would be noise beside it


def test_losses_are_not_read_off_single_prompts(question):
    names = ("a0.h1", "a1.h2")
    run = discover(*question, **{**ONE, "components": "a0.h1, a1.h2", "rows": 15})
    assert not losses_of(run, names).measured
    whole = discover(*question, components="a0.h1, a1.h2", budget=64, link="identity")
    assert losses_of(whole, names).measured


def test_what_was_paid_is_decoded_again_and_by_no_decoder_that_needs_all(found, tmp_path):
    found.responses.save(tmp_path / "r.safetensors")
    again = decode(Responses.load(tmp_path / "r.safetensors"), decoder="linear", link="identity")
    assert list(again.spectrum.terms()) == list(found.spectrum.terms())
    for decoder in ("exact", "spex"):
        with pytest.raises(DecodeError, match="needs every prompt under every mask"):
            decode(found.responses, decoder=decoder, link="identity")


@pytest.mark.parametrize("per_mask", [1, 2])
@pytest.mark.parametrize(
    "decoder", ["linear", *(pytest.param(d, marks=pytest.mark.slow) for d in ("proxyspex", "joint"))]
)
def test_every_decoder_for_any_masks_finds_what_is_there(question, decoder, per_mask):
    run = discover(*question, **{**ONE, "rows": 700, "prompts_per_mask": per_mask, "decoder": decoder, "link": "auto"})
    truth = discover(*question, components=ASKED["components"], budget=300, keep_prob=0.7, decoder="linear", seed=5)
    fresh = truth.responses
    missed = (run.predict(fresh.keep) - fresh.mean).square().mean() / fresh.mean.var(correction=0)
    assert missed < (0.45 if decoder == "linear" else 0.25)


def test_a_journal_of_the_same_masks_with_other_prompts_is_another_experiment(question, tmp_path):
    lens, design = _engine(question), MaskDesign.bernoulli(16, 64, 0.7)
    deal = PromptDesign.beside(design, PROMPTS, 1)
    from functools import partial

    from spex_mech.measuring.measure import describe_experiment

    cut = partial(design.chunks)
    record = describe_experiment(lens, design, deal)
    measure_in(tmp_path, lens, record, design.keep(), cut=cut, meets=deal)
    for other in (describe_experiment(lens, design), describe_experiment(lens, design, replace(deal, seed=7))):
        with pytest.raises(ResponseError, match="prompt_design"):
            measure_in(tmp_path, lens, other, design.keep(), cut=cut)


def test_the_best_of_noisy_values_is_never_chosen(question, found):
    class Case:
        names, passes = found.components.names, Spent(question, found.responses)

    Case.found = found
    pool = MeasuredSets.of(Case)
    assert pool.begun == 0
    assert len(pool.keep) == 2
    assert pool.values.shape == (2, PROMPTS)
    keep, means = pool.learnt
    assert len(keep) == len(means) == len(found.responses) + 2
    assert try_stability.__module__.endswith("resampled_halves")
