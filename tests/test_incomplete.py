"""Masks that meet some prompts each: how prompts are dealt, what the engine gives, what files and samples say of it."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import bridge_of, tiny, tokens_task

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import Engine
from spex_mech.errors import DecodeError, DesignError, FormatError, ResponseError
from spex_mech.store.responses import Responses
from spex_mech.walsh.certainty.independence import as_drawn, runs
from spex_mech.walsh.certainty.inference import infer
from spex_mech.walsh.certainty.stability import stability
from spex_mech.walsh.decoders.exact import Exact
from spex_mech.walsh.decoding import Samples
from spex_mech.walsh.incomplete import by_row
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.masks.prompt_design import PromptDesign


@st.composite
def deals(draw):
    prompts = draw(st.integers(2, 40))
    masks = draw(st.integers(1, 400))
    again = draw(st.one_of(st.just(0), st.integers(0, masks // 2)))
    return PromptDesign(prompts, draw(st.integers(1, prompts - 1)), masks, again, draw(st.integers(0, 1 << 63)))


@given(deals(), st.integers(1, 100))
@settings(max_examples=80, deadline=None)
def test_prompts_of_a_mask_differ_and_all_are_met_as_often(deal, size):
    met = deal.met()
    assert met.shape == (deal.n_masks, deal.per_mask)
    assert (met.diff(dim=1) > 0).all()
    assert met.min() >= 0
    assert met.max() < deal.prompts
    parts = [deal.met(start, start + size) for start in range(0, deal.n_masks, size)]
    assert torch.equal(torch.cat(parts), met)
    first = deal.n_masks - deal.again
    for start, stop in ((0, first), (0, first // 2), (first // 3, first), (0, deal.n_masks)):
        often = met[start:stop].flatten().bincount(minlength=deal.prompts)
        whole = start == 0 and (stop <= first or deal.again % deal.block == 0)
        assert often.max() - often.min() <= (1 if whole else 2)
    if 2 * deal.per_mask <= deal.prompts:  # asked again, a mask meets other prompts
        for one, other in zip(met[: deal.again].tolist(), met[first:].tolist(), strict=True):
            assert not set(one) & set(other)


def test_pairs_of_prompts_share_masks_alike_and_seeds_deal_otherwise():
    deal = PromptDesign(12, 3, 4400, seed=5)
    met = deal.met()
    bits = torch.zeros(4400, 12).scatter_(1, met, 1.0)
    together = (bits.T @ bits)[torch.triu(torch.ones(12, 12), 1).bool()]
    assert together.mean() == 4400 * 3 / 66
    assert together.min() > 0.7 * together.mean()
    assert together.max() < 1.3 * together.mean()
    assert torch.equal(met, PromptDesign(12, 3, 4400, seed=5).met())
    assert (met != PromptDesign(12, 3, 4400, seed=6).met()).any(1).double().mean() > 0.9
    assert PromptDesign.from_dict(json.loads(json.dumps(deal.to_dict()))) == deal


def test_which_prompts_are_met_has_nothing_to_do_with_the_masks():
    design = MaskDesign.bernoulli(30, 8000, 0.7, seed=3)
    met = PromptDesign.beside(design, 10, 1).met()[:, 0]
    share = torch.stack([design.keep()[met == p].double().mean(0) for p in range(10)])
    z = (share - 0.7) / (0.7 * 0.3 / 800) ** 0.5
    assert z.abs().max() < 4.5
    assert 0.8 < z.std() < 1.2


def test_masks_that_are_asked_again_are_the_first_ones():
    for design in (MaskDesign.bernoulli(9, 200, 0.6, 2), MaskDesign.stratified(9, 201, (0.3, 0.9), 2)):
        again = design.asking_again(25)
        assert torch.equal(again.keep()[-25:], again.keep()[:25])
        assert torch.equal(again.keep(0, design.n_masks - 25), design.keep(0, design.n_masks - 25))
        assert torch.equal(torch.cat([keep for _, keep in again.chunks(37)]), again.keep())
        assert MaskDesign.from_dict(json.loads(json.dumps(again.to_dict()))) == again
        assert "again" not in design.to_dict()  # so that runs of before are known by what they were
    for wrong in (-1, 101):
        with pytest.raises(DesignError, match="asked again"):
            MaskDesign.bernoulli(9, 200).asking_again(wrong)
    with pytest.raises(DesignError, match="share no bits"):
        MaskDesign.bernoulli(9, 200).sharing([0], 2).asking_again(8)
    with pytest.raises(DesignError, match="asked again"):
        MaskDesign.complete(4).asking_again(1)


@pytest.mark.parametrize("numbers", [(4, 4, 9), (4, 0, 9), (4, 1, 0), (4, 1, 9, 5), (1, 1, 9)])
def test_prompts_that_cannot_be_dealt_are_refused(numbers):
    with pytest.raises(DesignError, match="prompts"):
        PromptDesign(*numbers)
    with pytest.raises(DesignError, match="no prompts of masks"):
        PromptDesign.from_dict({"prompts": 3})


@pytest.fixture(scope="module")
def gpt2():
    return tiny("gpt2")


@pytest.fixture(scope="module", params=["torch", "bridge", "nnsight", "prompted", "planted"])
def case(request, gpt2):
    from nnsight import NNsight

    if request.param == "planted":
        layout = planted.PlantedLayout(n_layers=2, n_heads=4, d_mlp=2)
        return planted.additive({"a0.h1": 0.7, "m1.n1": -1.1}, layout=layout, spread=0.3), planted.task(5, seed=0)
    task = tokens_task(n_prompts=5, ragged=request.param != "prompted")
    wrap = {"bridge": bridge_of, "nnsight": NNsight}.get(request.param, lambda model: model)
    subject = sm.bind(wrap(copy.deepcopy(gpt2)))
    return (sm.with_prompt(subject, task, filler=0) if request.param == "prompted" else subject), task


@pytest.mark.parametrize("per_mask", [1, 2, 4])
def test_rows_are_those_of_the_crossed_matrix_for_any_batch_size(case, per_mask):
    subject, task = case
    components = sm.heads(subject)
    reference = fit_replacement(subject, task, components)
    keep = MaskDesign.bernoulli(len(components), 23, 0.6, seed=2).keep()
    met = PromptDesign(len(task), per_mask, 23, seed=1).met()
    wanted = Engine(subject, task, components, reference).values(keep).gather(1, met)
    scale = max(1.0, float(wanted.abs().max()))
    for rows in (None, 1, 3, 16):
        engine = Engine(subject, task, components, reference, batch_rows=rows)
        found = engine.values(keep, met)
        assert (found - wanted).abs().max() <= 1e-6 * scale
        assert torch.equal(engine.values(keep, met), found)


def test_masks_of_one_prompt_go_together_and_share_what_they_share(gpt2, monkeypatch):
    subject, task = sm.bind(copy.deepcopy(gpt2)), tokens_task(n_prompts=4)
    components = sm.heads(subject)
    engine = Engine(subject, task, components, fit_replacement(subject, task, components), batch_rows=64)
    keep = MaskDesign.bernoulli(len(components), 80, 0.9, seed=2).keep()
    calls = []
    honest = Engine._one_prompt
    monkeypatch.setattr(
        Engine, "_one_prompt", lambda self, keep, shared, prompt, n: (
            calls.append((len(keep), int(prompt), shared.share)), honest(self, keep, shared, prompt, n))[1]
    )  # fmt: skip
    engine.values(keep, PromptDesign(4, 1, 80, seed=0).met())
    assert [(masks, prompt) for masks, prompt, _ in calls] == [(20, 0), (20, 1), (20, 2), (20, 3)]
    assert all(share < 1 for *_, share in calls)


def responses(per_mask=1, masks=40, prompts=5):
    keep = MaskDesign.bernoulli(6, masks, 0.6, seed=2).keep()
    met = PromptDesign(prompts, per_mask, masks, seed=1).met()
    values = torch.randn(met.shape, generator=torch.Generator().manual_seed(0))
    names = sm.ComponentSet.of([f"a0.h{i}" for i in range(6)])
    return Responses(names, keep, values, "logit", {"seed": 1}, met, prompts)


@pytest.mark.parametrize("per_mask", [1, 3])
def test_incomplete_responses_survive_a_file_that_others_can_read(tmp_path, per_mask):
    one = responses(per_mask)
    one.save(tmp_path / "r.safetensors")
    other = Responses.load(tmp_path / "r.safetensors")
    assert torch.equal(other.met, one.met)
    assert torch.equal(other.values, one.values)
    assert other.prompts == 5
    assert torch.equal(other.mean, one.mean)
    assert str(other) == str(one)
    other.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "r.safetensors").read_bytes()
    with safe_open(tmp_path / "r.safetensors", "np") as file:  # what the docstring of Responses says
        met, values = file.get_tensor("met"), file.get_tensor("values")
        assert met.dtype == np.int16
        assert met.shape == values.shape
        assert file.metadata()["prompts"] == "5"
    wide = Responses(one.components, one.keep, one.values, "logit", {}, one.met + 70_000, 80_000)
    wide.save(tmp_path / "wide.safetensors")
    assert torch.equal(Responses.load(tmp_path / "wide.safetensors").met, wide.met)


def test_what_responses_say_of_themselves():
    one = responses(3)
    assert str(one).startswith("Responses: 40 masks × 3 of 5 prompts of 6 components")
    some = one.take(torch.tensor([4, 2]))
    assert torch.equal(some.met, one.met[[4, 2]])
    assert some.prompts == 5
    frame = one.frame()
    assert frame["prompts"][7] == tuple(one.met[7].tolist())
    beside = one.values.double() - one.samples.output_means[one.met]
    assert np.allclose(frame["std"], beside.std(1, correction=0))
    assert responses(1).frame()["std"].isna().all()
    crossed = Responses(one.components, one.keep, one.values, "logit")
    assert (crossed.prompts, crossed.met, crossed.extent) == (3, None, "40 masks × 3 prompts")
    assert list(crossed.frame()) == ["ablated", "count", "mean", "std"]


def test_files_of_before_are_crossed_and_carry_no_more_than_before(tmp_path):
    one = responses(3)
    Responses(one.components, one.keep, one.values, "logit").save(tmp_path / "r.safetensors")
    with safe_open(tmp_path / "r.safetensors", "pt") as file:
        assert set(file.keys()) == {"keep", "values"}
        assert set(file.metadata()) == {"schema", "components", "unit", "provenance"}
    assert Responses.load(tmp_path / "r.safetensors").met is None


@pytest.mark.parametrize(
    ("met", "prompts"),
    [(torch.zeros(40, 3).short(), "5"), (torch.full((40, 3), 9).short(), "5"), (torch.zeros(40, 2).short(), "5"),
     (torch.zeros(40, 3), "5"), (torch.arange(3).short().repeat(40, 1), str(1 << 60)), (torch.zeros(0).int(), "5"),
     (-torch.arange(3).int().repeat(40, 1), "5"), (torch.arange(3).short().repeat(40, 1), "many")],
)  # fmt: skip
def test_files_that_say_nonsense_of_prompts_are_refused(tmp_path, met, prompts):
    responses(3).save(tmp_path / "r.safetensors")
    with safe_open(tmp_path / "r.safetensors", "pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in ("keep", "values")}, file.metadata()
    save_file(tensors | {"met": met}, tmp_path / "bad.safetensors", metadata | {"prompts": prompts})
    with pytest.raises(FormatError):
        Responses.load(tmp_path / "bad.safetensors")


def test_prompts_that_there_are_not_or_twice_are_refused():
    one = responses(2)
    for met, prompts in ((one.met, 3), (one.met * 0, 5), (one.met[:, :1], 5), (one.met.int(), 5), (one.met - 1, 5)):
        with pytest.raises(ResponseError, match="different ones in a row"):
            Responses(one.components, one.keep, one.values, "logit", {}, met, prompts)


def population(prompts=8, n=6, seed=0):
    """Functions of prompts that share a line and differ in level and slope; and the line."""
    generator = torch.Generator().manual_seed(seed)
    line = torch.tensor([1.0, -0.5, 0.25, 0.0, 0.0, 0.0][:n], dtype=torch.float64)
    slopes = line + 0.5 * torch.randn(prompts, n, generator=generator, dtype=torch.float64)
    slopes = slopes - slopes.mean(0) + line
    levels = 3 * torch.randn(prompts, generator=generator, dtype=torch.float64)
    return line, lambda keep: (2 * keep.double() - 1) @ slopes.T + levels


def sampled(function, prompts, masks, per_mask, seed, again=0):
    design = MaskDesign.bernoulli(6, masks, 0.5, seed=seed).asking_again(again)
    met = PromptDesign.beside(design, prompts, per_mask).met()
    return Samples(design.keep(), function(design.keep()).gather(1, met), design, met, prompts)


def test_the_headline_of_incomplete_rows_is_that_of_all_on_average():
    _, function = population()
    keep = MaskDesign.bernoulli(6, 64, 0.5, seed=9).keep()
    truth = function(keep).mean(1)
    found = []
    for seed in range(400):
        met = PromptDesign(8, 1, 64, seed=seed).met()
        found.append(Samples(keep, function(keep).gather(1, met), None, met, 8).mean_values)
    found = torch.stack(found)
    z = (found.mean(0) - truth) / (found.std(0) / 20)
    assert z.abs().max() < 4.5
    assert abs(float(z.mean())) < 0.5
    assert found.std(0).mean() < 1.5  # the levels, of 3, are not in it


@pytest.mark.parametrize("again", [0, 32])
def test_errors_are_over_masks_and_over_which_prompts_they_met(again):
    inside, pull = [], []
    for seed in range(60):
        line, function = population(seed=seed)
        found = infer(sampled(function, 8, 256, 1, seed, again), [(i,) for i in range(6)], folds=2, seed=seed)
        low, high = found.interval()
        inside += [bool(a <= c <= b) for a, c, b in zip(low[1:], line, high[1:], strict=True)]
        pull += ((found.estimates.value[1:] - line) / found.estimates.stderr[1:]).tolist()
    assert 0.91 <= np.mean(inside) <= 0.985
    assert 0.85 < np.std(pull) < 1.15


def test_masks_asked_again_are_one_unit_of_evidence():
    _, function = population()
    samples = sampled(function, 8, 100, 1, seed=0, again=20)
    unit = runs(samples)
    assert torch.equal(unit[:20], unit[80:]) or torch.equal(samples.keep[:20], samples.keep[80:])
    assert all(unit[row] == unit[80 + row] for row in range(20))
    some = as_drawn(samples, torch.tensor([0, 1, 2, 80, 81, 50]))
    assert some.met is None
    assert some.values.shape[1] == 1
    assert len(runs(some).unique()) == len(some.keep.unique(dim=0)) < 6


def test_rows_of_a_mask_are_one_unit_of_evidence():
    _, function = population()
    rows, mask = by_row(sampled(function, 8, 60, 3, seed=0))
    seen = as_drawn(rows, torch.arange(180))
    unit = runs(seen)
    assert len(unit.unique()) == len(seen.keep.unique(dim=0)) <= 60
    assert all(len(unit[mask == m].unique()) == 1 for m in range(60))
    some = as_drawn(seen, (mask < 10).nonzero()[:, 0])
    assert len(runs(some).unique()) == len(some.keep.unique(dim=0)) <= 10


def test_what_needs_every_prompt_says_so():
    _, function = population()
    design = MaskDesign.complete(6)
    met = PromptDesign.beside(design, 8, 2).met()
    samples = Samples(design.keep(), function(design.keep()).gather(1, met), design, met, 8)
    with pytest.raises(DecodeError, match=r"needs every prompt under every mask; here a mask met 2 of 8.*joint"):
        Exact().decode(samples)
    with pytest.raises(DecodeError, match="halve the masks"):
        stability(samples, [(0,)], over="outputs")
