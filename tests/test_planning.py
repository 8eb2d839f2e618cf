"""Plans against runs: passes to the number, seconds within a third, advice that follows what was measured."""

import json
import sys
import time

import pytest
import torch

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import Engine
from spex_mech.api.plan import GPUS, advise, plan_run
from spex_mech.cli import main as cli
from spex_mech.errors import DecodeError, SpexMechError
from spex_mech.measuring.measure import measure


@pytest.fixture(scope="module")
def study():
    return sm.open_study("induction-2l")


def seconds_of_a_run(study, budget, keep):
    """Processor time of the passes, since the machine may be doing other things."""
    reference = fit_replacement(study.subject, study.task, study.components, study.replacement, per=study.per)
    engine = Engine(study.subject, study.task, study.components, reference)
    design, passed = sm.MaskDesign.bernoulli(len(study.components), budget, keep, 0), []
    plain = Engine.values
    _ = engine.rows
    started = time.process_time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "values", lambda self, rows: passed.append(len(rows)) or plain(self, rows))
        measure(engine, design.chunks(256))
    return time.process_time() - started, sum(passed) * len(study.task)


@pytest.mark.parametrize("keep", [0.5, 0.9])
def test_a_plan_is_what_the_run_then_takes(study, keep):
    options = {"replacement": study.replacement, "per": study.per, "clock": time.process_time}
    ratios = []
    for _ in range(3):  # the middle of three; a busy machine is slow at times
        plan = plan_run(study.subject, study.task, study.components, budget=1000, keep_prob=keep, **options)
        seconds, rows = seconds_of_a_run(study, 1000, keep)
        assert plan.distinct * plan.prompts == rows < plan.rows == 1000 * len(study.task)
        ratios.append(plan.seconds / seconds)
    assert 0.7 < sorted(ratios)[1] < 1.3, ratios
    assert plan.model_bytes == sum(p.numel() * p.element_size() for p in study.subject.model.parameters())
    assert plan.peak_bytes > 100_000
    assert plan.flops > 1e6 * plan.rows / 100


def test_a_gpu_gives_a_floor_and_a_price(study):
    options = {"budget": 300, "replacement": study.replacement, "per": study.per}
    plan = plan_run(study.subject, study.task, study.components, gpu="h100", price_per_hour=3.0, **options)
    assert plan.floor_seconds == pytest.approx(plan.flops / (GPUS["h100"] * 1e12))
    assert plan.likely_seconds == pytest.approx(4 * plan.floor_seconds)
    assert plan.price == pytest.approx(3.0 * plan.likely_seconds / 3600)
    here = plan_run(study.subject, study.task, study.components, price_per_hour=3.0, **options)
    assert here.price == pytest.approx(3.0 * here.seconds / 3600)
    with pytest.raises(SpexMechError, match="no figures for GPU 'abacus'; there are for"):
        plan_run(study.subject, study.task, study.components, gpu="abacus", **options)
    with pytest.raises(DecodeError, match="Raise the budget"):
        plan_run(study.subject, study.task, study.components, budget=3)


def test_plans_of_every_length_of_prompt():
    subject = planted.conjunction(("a0.h1", "a1.h0"))
    task = sm.Task(
        tokens=[[1, 6, 0]] * 3 + [[1, 6, 0, 0]] * 5, answers=[1] * 8, distractors=[[0]] * 8, positions=[-1] * 8
    )
    plan = plan_run(subject, task, "a*.h*", budget=100, replacement="zero")
    assert (plan.masks, plan.rows) == (100, 100 * 8)
    assert plan.distinct == len(sm.MaskDesign.bernoulli(8, 100, 0.5, 0).keep().unique(dim=0))


@pytest.mark.parametrize(
    ("n", "budget", "first"),
    [(8, 256, "exact"), (8, 255, "joint"), (156, 2048, "joint"), (36_864, 4096, "refinement"), (30, 2048, "joint")],
)
def test_advice(n, budget, first):
    told = advise(n, budget)
    assert told[0].startswith(first)
    assert any(line.startswith("coded SPEX (keep_prob='coded')") for line in told) == (
        n in (8, 30) and first != "exact"
    )


def test_a_simulation_finds_what_a_budget_can(study):
    options = {"replacement": study.replacement, "per": study.per, "simulate": True, "decoder": "proxyspex"}
    (many,) = plan_run(study.subject, study.task, study.components, budget=900, **options).simulated
    (few,) = plan_run(study.subject, study.task, study.components, budget=40, **options).simulated
    assert many.decoder == "proxyspex"
    assert many.r2 > 0.99 > few.r2
    assert many.found > few.found
    assert many.seconds > 0


def test_the_command_line(capsys, monkeypatch):
    def call(*args):
        monkeypatch.setattr(sys, "argv", ["spex-mech", "plan", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    threads = torch.get_num_threads()
    code, out, _ = call("planted-and", "--budget", 300, "--gpu", "h100", "--price", 2.5)
    assert code == 0
    assert "300 masks" in out
    assert "joint" in out
    code, out, _ = call("planted-and", "--budget", 300, "--json")
    told = json.loads(out)
    assert (code, told["masks"], told["rows"]) == (0, 300, 300 * told["prompts"])
    code, _, err = call("planted-and", "--gpu", "abacus")
    assert (code, "no figures" in err) == (2, True)
    assert torch.get_num_threads() == threads
