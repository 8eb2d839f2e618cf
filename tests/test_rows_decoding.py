"""Joint on masks that met some prompts: its processes against dense algebra, and R² of the mean from rows."""

from dataclasses import replace

import pytest
import torch

from spex_mech.walsh.decoding import Outcome, Samples, r_squared
from spex_mech.walsh.incomplete import by_row, mean_r_squared
from spex_mech.walsh.joint.coregionalised import Coregionalised
from spex_mech.walsh.joint.gaussian import GaussianProcess, inputs
from spex_mech.walsh.joint.joint import Joint
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.masks.prompt_design import PromptDesign
from spex_mech.walsh.spectrum import Basis

PROMPTS, N = 8, 10


def functions(seed=0, own=0.5):
    """Prompts' functions around a shared one with a pair and a triple; all of them under any masks."""
    generator = torch.Generator().manual_seed(seed)
    slopes = torch.tensor([1.0, -0.8, 0.5] + [0.0] * (N - 3)).double()
    slopes = slopes + own * torch.randn(PROMPTS, N, generator=generator).double() / N**0.5
    levels, gains = torch.randn(2, PROMPTS, generator=generator).double()

    def values(keep):
        x = 2 * keep.double() - 1
        joint = x[:, 0] * x[:, 1] + 0.6 * x[:, 2] * x[:, 3] * x[:, 4]
        return x @ slopes.T + joint[:, None] * (1 + own * gains) + 2 * levels

    return values


def dealt(masks, *, again=0, seed=0, values=None):
    design = MaskDesign.bernoulli(N, masks, 0.5, seed=seed).asking_again(again)
    met = PromptDesign.beside(design, PROMPTS, 1).met()
    return Samples(design.keep(), (values or functions())(design.keep()).gather(1, met), design, met, PROMPTS)


@pytest.fixture(scope="module")
def learned():
    samples, _ = by_row(dealt(120, again=20))
    fold = torch.arange(len(samples.keep)) % 2
    process = Coregionalised(GaussianProcess(scales=(1.0, 0.3)), rank=2, subset=64, steps=20)
    return samples, process.train(samples, fold, Basis(), 0, [0, 1])


def test_the_headline_is_the_mean_over_prompts_of_what_dense_algebra_says(learned):
    samples, trained = learned
    found, soft = trained.given(samples), torch.nn.functional.softplus
    weights = {name: value.mean(0) for name, value in trained.weights.items()}
    alike = (trained.weights["factors"] @ trained.weights["factors"].mT).mean(0)
    alike = alike + soft(weights["own"]) * torch.eye(PROMPTS).double()
    process, met = trained.settings.process, samples.met[:, 0]
    z, y = inputs(samples.keep, Basis()), samples.values[:, 0].double() - samples.output_means[met]
    same = torch.eye(PROMPTS).double() * soft(weights["mean"])
    system = process.covariance(weights, z, z) * alike[met][:, met] + same[met][:, met]
    solved = torch.linalg.solve(system + process.noise(weights) * torch.eye(len(z)).double(), y)
    fresh = MaskDesign.bernoulli(N, 30, 0.5, seed=9).keep()
    across = process.covariance(weights, inputs(fresh, Basis()), z)
    every = torch.stack(
        [(across * alike[p][met] + same[p][met]) @ solved + samples.output_means[p] for p in range(PROMPTS)]
    )
    assert torch.allclose(found.headline.predict(fresh), every.mean(0), atol=1e-6)
    for prompt in range(PROMPTS):
        own = found.own(fresh, torch.full((len(fresh),), prompt))
        assert torch.allclose(own, every[prompt] - every.mean(0), atol=1e-6)
    assert (every - every.mean(0)).abs().max() > 0.1


def test_the_middle_of_covariances_does_not_depend_on_how_each_is_turned(learned):
    samples, trained = learned
    factors = trained.weights["factors"]
    turned = replace(trained, weights=trained.weights | {"factors": torch.stack([factors[0], -factors[1]])})
    fresh = MaskDesign.bernoulli(N, 20, 0.5, seed=9).keep()
    one, other = (t.given(samples).headline.predict(fresh) for t in (trained, turned))
    assert torch.allclose(one, other, atol=1e-8)


def test_r_squared_from_rows_is_right_on_average_and_so_is_its_error():
    values, found = functions(), []
    fresh = MaskDesign.bernoulli(N, 4096, 0.5, seed=99).keep()
    guess = lambda keep: 1.5 * (keep[:, 0].double() - keep[:, 1].double())  # noqa: E731
    truth = values(fresh).mean(1)
    level = truth.mean()
    for seed in range(80):
        rows, _ = by_row(dealt(480, again=96, seed=seed, values=values))
        says, means = guess(rows.keep) + level, rows.output_means
        within = rows.values[:, 0] - (means - means.mean())[rows.met[:, 0]]
        found.append(mean_r_squared(rows.keep, within, says, PROMPTS))
    told, errors = torch.tensor(found).double().T
    right = r_squared(truth, guess(fresh) + level)
    assert 0.2 < right < 0.9
    assert abs(float(told.mean()) - right) < 4 * float(told.std()) / 80**0.5 + 0.01
    assert 0.7 < float(errors.mean() / told.std()) < 1.4


def test_no_r_squared_is_above_one():
    rows, _ = by_row(dealt(64, again=16))
    assert mean_r_squared(rows.keep, rows.values[:, 0], rows.values[:, 0], PROMPTS)[0] == 1.0


def test_rows_of_single_prompts_tell_more_than_as_many_of_all():
    values = functions()
    fresh = MaskDesign.bernoulli(N, 1024, 0.5, seed=99).keep()
    crossed = MaskDesign.bernoulli(N, 40, 0.5, seed=1)
    few = Joint().decode(Samples(crossed.keep(), values(crossed.keep()), crossed), seed=0)
    many = Joint().decode(dealt(320, again=40, seed=1, values=values), seed=0)
    r2 = [r_squared(values(fresh).mean(1), found.predict(fresh)) for found in (few, many)]
    assert r2[1] > max(0.97, r2[0])
    assert abs(many.stats["heldout_r2"] - r2[1]) < 4 * many.stats["heldout_r2_stderr"] + 0.02
    assert many.stats["masks_judged"] == many.stats["masks_fitted"] + many.stats["masks_heldout"] == 320


def test_values_that_do_not_vary_hold_nothing():
    samples = dealt(64, again=16, values=lambda keep: torch.full((len(keep), PROMPTS), 2.5).double())
    found = Joint().decode(samples, seed=0)
    assert found.outcome is Outcome.NOTHING_FOUND
    assert torch.allclose(found.predict(samples.keep), torch.full((64,), 2.5).double())


def test_the_bench_takes_the_rows_that_a_run_would_take():
    from spex_mech.bench.rows import _samples, _summary

    keep = MaskDesign.bernoulli(N, 400, 0.5, seed=3).keep()
    values = functions()(keep).float()
    crossed, single = (_samples(keep, values, 0.5, 320, per_mask) for per_mask in (PROMPTS, 1))
    assert (crossed.values.shape, single.values.shape, single.met.shape) == ((40, PROMPTS), (320, 1), (320, 1))
    assert torch.equal(single.keep, single.design.keep())  # masks asked again among them
    assert single.design.again == 48
    first = torch.arange(320) % (320 - 48)
    assert torch.equal(single.values[:, 0], values[first, single.met[:, 0]])
    cell = {"card": "x", "keep_prob": 0.5, "rows": 320, "told": 0.5}
    told = _summary([cell | {"r2": 0.4}, cell | {"r2": 0.6}])
    assert told["x, keep 0.5, 320 rows"] == {"R² crossed, one prompt a mask": "0.400 / 0.600"}
