"""The joint decoder and its parts: what is planted comes back, the best part wins, nothing held out is used."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import spex_mech as sm
from spex_mech.bench.functions import planted_function, support_f1
from spex_mech.errors import DecodeError
from spex_mech.walsh.decoders.linear import Linear
from spex_mech.walsh.decoders.proxyspex import ProxySpex
from spex_mech.walsh.decoders.pursuit import Pursuit
from spex_mech.walsh.decoders.refit import prune
from spex_mech.walsh.decoders.trees import Boosting
from spex_mech.walsh.decoding import Decoder, Outcome, Samples, r_squared
from spex_mech.walsh.joint.base_learners import MANY, FittedLearner
from spex_mech.walsh.joint.joint import Joint
from spex_mech.walsh.joint.neural import Network
from spex_mech.walsh.joint.stack import Stack, non_negative
from spex_mech.walsh.joint.stack_polynomial import corrected, read_out
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Basis, Spectrum
from spex_mech.walsh.spex.spex import Spex

PROCESSES = {name: replace(process, steps=30, subset=128) for name, process in Joint().processes.items()}
QUICK = Joint(boosting=Boosting(trees=60), processes=PROCESSES, most_sets=300)


def drawn(function, n, masks, *, noise=0.2, keep_prob=0.5, seed=0):
    design = MaskDesign.bernoulli(n, masks, keep_prob, seed)
    keep = design.keep()
    return Samples(keep, function.noisy(keep, noise, seed + 1)[:, None].float(), design)


def fresh_r2(function, spectrum, n, keep_prob=0.5):
    keep = MaskDesign.bernoulli(n, 2000, keep_prob, seed=77).keep()
    return r_squared(function(keep), spectrum.mean_output().evaluate(keep))


def members(found):
    return {tuple(i for i in row if i >= 0) for row in found.tolist()}


@pytest.mark.parametrize(("n", "masks"), [(64, 500), (1024, 1000)])
def test_pursuit_finds_hierarchical_supports(n, masks):
    """The figures that the decoder has to reach: F1 ≥ 0.98 at 500 masks of 64 and at 1,000 of 1,024 components."""
    scores = []
    for seed in range(4):
        function = planted_function("hierarchical", n, sets=5, seed=seed)
        samples = drawn(function, n, masks, seed=seed)
        found = Pursuit().find(samples.keep, samples.mean_values, Basis())
        kept = prune(samples.keep, samples.mean_values, found, Basis(), tested=n * n // 2, ridge=1e-9)
        scores.append(support_f1(function.sets, set(kept.sets)))
    assert sum(scores) / len(scores) >= 0.98


def test_pursuit_without_noise_stops_when_all_is_explained():
    function = planted_function("hierarchical", 30, sets=3, seed=2)
    samples = drawn(function, 30, 400, noise=0.0)
    found = members(Pursuit().find(samples.keep, samples.values[:, 0].double(), Basis()))
    assert function.sets <= found
    assert () in found
    assert len(found) < 2 * len(function.sets)


def test_pursuit_of_noise_takes_few_and_as_many_as_told():
    keep = MaskDesign.bernoulli(40, 300).keep()
    noise = torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert len(Pursuit(false_sets=0.05).find(keep, noise, Basis())) <= 2
    assert len(Pursuit(false_sets=math.inf, most_sets=50).find(keep, noise, Basis())) == 51
    assert (Pursuit(false_sets=math.inf, most_sets=60, degree=2).find(keep, noise, Basis()) >= 0).sum(1).max() == 2


def test_pursuit_in_a_biased_basis():
    function = Spectrum.from_terms(
        50, {(): 1.0, (3,): 0.5, (3, 7): 0.4, (20, 21, 22): 0.0, (9,): -0.6}, Basis("mobius")
    )
    keep = MaskDesign.bernoulli(50, 600, 0.9, seed=1).keep()
    values = function.evaluate(keep) + 0.02 * torch.randn(600, generator=torch.Generator().manual_seed(1))
    basis = Basis.orthonormal(0.9)
    found = prune(keep, values, Pursuit().find(keep, values, basis), basis, tested=1275, ridge=1e-9)
    assert set(found.rewrite(Basis("mobius")).prune(0.1).sets) >= {(3, 7), (9,)}


def test_the_networks_unseen_predictions_are_honest():
    """Out-of-sample R² is that of the members on fresh masks; all members together are better still."""
    function = planted_function("hierarchical", 20, sets=4, seed=1)
    samples = drawn(function, 20, 400, noise=0.5)
    fold = torch.arange(400) % 4
    ensemble = Network(steps=200, width=32).train(samples.keep, samples.values, fold, Basis(), 0)
    unseen = r_squared(samples.mean_values, ensemble.out_of_sample(samples.keep, fold))
    seen = r_squared(samples.mean_values, ensemble.predict(samples.keep))
    keep = MaskDesign.bernoulli(20, 2000, seed=9).keep()
    noisy = function.noisy(keep, 0.5, 5)
    members_alone = [r_squared(noisy, member.double()) for member in ensemble.members(keep)]
    assert unseen == pytest.approx(sum(members_alone) / len(members_alone), abs=0.1)
    assert unseen < r_squared(noisy, ensemble.predict(keep)) < seen


def test_outputs_help_each_other():
    """One function under forty noisy read-outs: together they tell more of their mean than the mean tells of itself."""
    function = planted_function("hierarchical", 30, sets=4, seed=3)
    keep = MaskDesign.bernoulli(30, 200).keep()
    generator = torch.Generator().manual_seed(0)
    scale = torch.randn(12, generator=generator, dtype=torch.float64)
    offset = planted_function("hierarchical", 30, sets=2, seed=4)(keep)
    values = function(keep)[:, None] + 0.1 * offset[:, None] * scale
    fold = torch.arange(200) % 4
    many = Network(steps=300, width=32).train(keep, values.float(), fold, Basis(), 0)
    again = Network(steps=300, width=32).train(keep, values.float(), fold, Basis(), 0)
    assert all(torch.equal(many.weights[name], again.weights[name]) for name in many.weights)
    assert many.weights["b3"].shape[2] == 12
    assert r_squared(values.mean(1), many.predict(keep)) > 0.5


def test_joint_is_a_decoder():
    assert isinstance(Joint(), Decoder)
    assert Joint().name == "joint"


def test_a_sparse_function_is_given_back_as_such():
    """500 masks of 64 components, noise 0.2: the support, not a dense stack that is about as good."""
    function = planted_function("hierarchical", 64, sets=5, seed=0)
    decoded = QUICK.decode(drawn(function, 64, 500), seed=0)
    assert decoded.stats["winner"] in ("pursuit", "proxyspex")
    assert support_f1(function.sets, set(decoded.spectrum.sets)) >= 0.98
    assert decoded.outcome is Outcome.RECOVERED
    assert decoded.stats["heldout_r2"] == pytest.approx(fresh_r2(function, decoded.spectrum, 64), abs=0.06)


@pytest.mark.parametrize(("kind", "n", "masks", "keep_prob"), [("tanh", 30, 500, 0.5), ("tanh", 30, 500, 0.9)])
def test_it_is_no_worse_than_its_parts(kind, n, masks, keep_prob):
    function = planted_function(kind, n, sets=8, seed=1)
    samples = drawn(function, n, masks, noise=0.05, keep_prob=keep_prob)
    joint = fresh_r2(function, QUICK.decode(samples, seed=0).spectrum, n, keep_prob)
    others = [d.decode(samples, seed=0).spectrum for d in (ProxySpex(boosting=QUICK.boosting), Linear())]
    assert joint >= max(fresh_r2(function, s, n, keep_prob) for s in others) - 0.02


def test_where_pursuit_leaves_nothing_no_other_part_is_fitted():
    function = planted_function("hierarchical", 20, sets=3, seed=0)
    decoded = QUICK.decode(drawn(function, 20, 300, noise=0.0), seed=0)
    assert set(decoded.stats["parts"]) == {"pursuit"}
    assert decoded.stats["winner"] == "pursuit"
    assert set(decoded.spectrum.sets) - {()} == function.sets
    assert decoded.stats["heldout_r2"] > 1 - 1e-9


def test_the_record_says_why_the_winner_won():
    function = planted_function("hierarchical", 20, sets=3, seed=0)
    decoded = QUICK.decode(drawn(function, 20, 200), seed=0)
    parts = decoded.stats["parts"]
    trees = {"trees", "line+trees", "trees, large leaves"}
    names = {"pursuit", "proxyspex", "line", "process, dense", "process, sparse"} | trees
    assert set(parts) == names
    assert all(part["weight"] >= 0 and part["seconds"] >= 0 and part["r2"] <= 1 for part in parts.values())
    assert decoded.stats["masks_fitted"] + decoded.stats["masks_heldout"] == 200


def test_what_is_held_out_is_used_for_nothing():
    function = planted_function("hierarchical", 16, sets=3, seed=0)
    samples = drawn(function, 16, 160)
    once = replace(QUICK, again=False)
    first = once.decode(samples, seed=3)
    held = first.stats["masks_heldout"]
    changed = samples.values.clone()
    from spex_mech.walsh.decoding import split_masks

    _, rows = split_masks(samples.groups, QUICK.heldout, 3)
    assert len(rows) == held
    changed[rows] += 100
    second = once.decode(Samples(samples.keep, changed, samples.design), seed=3)
    assert first.spectrum.sets == second.spectrum.sets
    assert torch.equal(first.spectrum.coefficients, second.spectrum.coefficients)
    assert first.stats["set_aside_r2"] != second.stats["set_aside_r2"]
    assert first.stats["set_aside_r2"] == QUICK.decode(samples, seed=3).stats["set_aside_r2"]


def test_solving_again_with_the_held_out_masks_is_worth_it():
    gained = []
    for seed in range(2):
        samples = drawn(planted_function("tanh", 24, sets=6, seed=seed), 24, 120, seed=seed)
        function = planted_function("tanh", 24, sets=6, seed=seed)
        more, less = (replace(QUICK, again=again, heldout=0.3).decode(samples, seed=0) for again in (True, False))
        assert more.stats["set_aside_r2"] == less.stats["set_aside_r2"]
        gained.append(fresh_r2(function, more.spectrum, 24) - fresh_r2(function, less.spectrum, 24))
    assert sum(gained) / 2 > 0.01


def test_the_held_out_masks_judge_what_had_not_seen_them():
    """Errors and q-values come from masks without a part in the selection, though the answer has them as well."""
    from spex_mech.walsh.certainty.weigh import heldout_samples, weigh

    function = planted_function("hierarchical", 16, sets=3, seed=0)
    samples = drawn(function, 16, 200)
    decoded = QUICK.decode(samples, seed=3)
    held = heldout_samples(samples, QUICK, decoded, 3)
    assert held is not None
    assert decoded.before is not None
    assert decoded.before.sets == decoded.spectrum.sets
    assert r_squared(held.mean_values, decoded.judged.predict(held.keep)) == decoded.stats["set_aside_r2"]
    assert "optimistic" not in str(weigh(samples, QUICK, decoded, seed=3).record["inference"])


@pytest.mark.parametrize("kind", ["random", "tanh"])
def test_on_coded_masks_it_is_spex_unless_spex_is_worse(kind):
    """What has no strong subsets is found as SPEX finds it; where the function is not sparse the proxies answer."""
    function = planted_function(kind, 64, sets=40, degree=4, seed=2)
    design = MaskDesign.coded(64, degree=5, budget=1728, seed=2)
    values = function.noisy(design.keep(), 0.2, 3)[:, None].float()
    samples = Samples(design.keep(), values, design)
    decoded, alone = QUICK.decode(samples, seed=0), Spex().decode(samples, seed=0)
    if kind == "random":
        assert decoded.stats["winner"] in ("spex", "pursuit")  # both see it; each is judged by masks of its own
        assert support_f1(function.sets, set(decoded.spectrum.sets)) >= 0.99
        assert fresh_r2(function, decoded.spectrum, 64) > fresh_r2(function, alone.spectrum, 64) - 0.001
    else:
        assert decoded.stats["winner"] != "spex"
        assert fresh_r2(function, decoded.spectrum, 64) > fresh_r2(function, alone.spectrum, 64) + 0.02


def test_same_seed_same_bits():
    samples = drawn(planted_function("tanh", 12, sets=5, seed=0), 12, 100)
    one, same = QUICK.decode(samples, seed=1), QUICK.decode(samples, seed=1)
    assert one.spectrum.sets == same.spectrum.sets
    assert torch.equal(one.spectrum.coefficients, same.spectrum.coefficients)


@pytest.mark.parametrize("seed", range(3))
def test_a_stack_is_read_out_well_where_many_components_are_ablated_too(seed):
    """At q = 0.9 rare masks have large products; asked under its own kind of masks alone it is read at 0.88 to 0.92."""
    weights = torch.rand(40, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3 * 2

    def decay(keep):
        return 6 * torch.exp(-((~keep).double() @ weights))

    design = MaskDesign.bernoulli(40, 200, 0.9, seed)
    known = Samples(design.keep(), decay(design.keep())[:, None].float(), design)
    stack = SimpleNamespace(predict=decay, r2=0.96, strongest_sets=lambda least: [])
    read = read_out(stack, known, Basis.orthonormal(0.9), 1600, seed)
    fresh = MaskDesign.bernoulli(40, 20_000, 0.9, seed + 50).keep()
    assert r_squared(decay(fresh), read.evaluate(fresh)) > 0.93


def test_what_a_part_knows_is_not_lost_where_the_stack_is_read_out():
    """Triples of which no pair shows anything: pursuit sees them when it looks at all, reading out need not look."""
    truth = Spectrum.from_terms(100, {(25, 39, 95): 1.0, (5, 42, 99): 1.0, (73,): 0.7, (24,): 0.7})
    part = SimpleNamespace(polynomial=truth, name="pursuit", predict=truth.evaluate)
    other = SimpleNamespace(polynomial=None, name="trees", predict=lambda keep: 0.1 * truth.evaluate(keep))
    weights = torch.tensor([0.9, 0.1], dtype=torch.float64)
    stack = Stack([part, other], weights, 0.0, torch.zeros(0), 0.95, "stack", None)
    samples = Samples(MaskDesign.bernoulli(100, 150, seed=1).keep(), torch.zeros(150, 1))
    read = read_out(stack, samples, Basis(), 1600, 0)
    assert set(truth.sets) <= set(read.sets) | {()}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("masks", [100, MANY * 3 // 2])
def test_it_learns_where_gradients_are_turned_off(mode, masks):
    """As notebooks turn them off, for models that only answer."""
    function = planted_function("tanh", 12, sets=3, seed=0)
    decoder = replace(QUICK, network=Network(steps=20, width=8))
    here = decoder.decode(drawn(function, 12, masks), seed=0)
    with mode():
        there = decoder.decode(drawn(function, 12, masks), seed=0)
    assert torch.equal(here.spectrum.coefficients, there.spectrum.coefficients)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("keep_prob", [0.5, 0.9])
@pytest.mark.parametrize("masks", [200, MANY * 3 // 2])
def test_a_gpu_predicts_as_well(masks, keep_prob):
    function = planted_function("tanh", 20, sets=5, seed=0)
    here = drawn(function, 20, masks, keep_prob=keep_prob)
    there = Samples(here.keep.cuda(), here.values.cuda(), here.design)
    cpu, gpu = (fresh_r2(function, QUICK.decode(s, seed=0).spectrum, 20, keep_prob) for s in (here, there))
    assert gpu == pytest.approx(cpu, abs=0.03)


def test_no_effect_gives_no_set():
    keep = MaskDesign.bernoulli(20, 200).keep()
    noise = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    decoded = QUICK.decode(Samples(keep, noise), seed=0)
    assert not decoded.spectrum.orders.any()
    assert decoded.outcome is Outcome.NOTHING_FOUND


def test_standard_errors_of_the_correction_cover():
    """One-step estimates of a function that the stack reads badly: z-scores of their errors have variance near one."""
    truth = planted_function("hierarchical", 12, sets=3, seed=0).spectrum
    z = []
    for seed in range(60):
        keep = MaskDesign.bernoulli(12, 300, seed=seed).keep()
        noise = torch.randn(300, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        half = Spectrum(12, truth.members, truth.coefficients / 2)
        missed = truth.evaluate(keep) + noise - half.evaluate(keep)
        moved = corrected(half, keep, missed)
        assert moved.stderr is not None
        z += ((half.coefficients + _gap(half, keep, missed) - truth.coefficients) / moved.stderr).tolist()
    inside = sum(abs(x) < 1.96 for x in z) / len(z)
    assert 0.93 <= inside <= 0.97


@pytest.mark.parametrize(("keep_prob", "moves"), [(0.5, True), (0.9, False)])
def test_only_coefficients_that_enough_masks_speak_for_are_corrected(keep_prob, moves):
    """400 masks are many for a triple of fair coins, and few at 0.9, where its products have a kurtosis of 532."""
    basis, keep = Basis.orthonormal(keep_prob), MaskDesign.bernoulli(6, 400, keep_prob, seed=1).keep()
    truth = Spectrum.from_terms(6, {(): 0.0, (0, 1, 2): 1.0}, basis)
    read = Spectrum(6, truth.members, torch.zeros(2, dtype=torch.float64), basis)
    moved = corrected(read, keep, truth.evaluate(keep))
    assert float(moved[0, 1, 2]) == pytest.approx(1.0 if moves else 0.0, abs=0.05)
    assert moved[()] == 0.0
    assert bool((moved.stderr > 0).all())


def _gap(read, keep, missed):
    from spex_mech.walsh.spectrum import monomials

    return (monomials(keep, read.members, read.basis) * (missed - missed.mean())[:, None]).mean(0)


def test_samples_that_joint_cannot_decode():
    samples = drawn(planted_function("hierarchical", 8, sets=2, seed=0), 8, 12)
    with pytest.raises(DecodeError, match="needs at least 16"):
        Joint().decode(samples, seed=0)
    kept = Samples(torch.ones(40, 3, dtype=torch.bool), torch.ones(40, 1))
    with pytest.raises(DecodeError, match="keeps the same"):
        Joint().decode(kept, seed=0)


@pytest.mark.parametrize("decoder", [QUICK, ProxySpex(boosting=QUICK.boosting)], ids=lambda d: d.name)
@pytest.mark.parametrize("masks", [40, 2000])
def test_masks_of_which_hardly_any_differ(decoder, masks):
    kinds = MaskDesign.bernoulli(8, 7, seed=0).keep()
    for different in range(2, 8):
        keep = kinds[torch.arange(masks) % different]
        samples = Samples(keep, keep[:, :1].float() + torch.arange(masks)[:, None] / masks)
        if different < 5:
            with pytest.raises(DecodeError, match=f"only {different} different ones"):
                decoder.decode(samples, seed=0)
        else:
            assert math.isfinite(decoder.decode(samples, seed=0).stats["heldout_r2"])


def test_discover_takes_it_by_name():
    from spex_mech.ablation.backends import planted

    subject = planted.parity_subject(("a0.h1", "m0.n1"), layout=planted.PlantedLayout(n_layers=2, n_heads=4, d_mlp=2))
    task = planted.task(n_prompts=2, seed=0)
    found = sm.discover(subject, task, "a*.h*, m*.n*", budget=200, decoder="joint")
    assert found.record["decoder"]["name"] == "joint"
    assert found.interactions()["components"].tolist()[0] == ("a0.h1", "m0.n1")


@pytest.mark.parametrize(("others", "winner"), [(0, "sparse"), (1, "sparse"), (4, "stack")])
def test_a_polynomial_stands_alone_only_where_polynomials_have_most_of_the_weight(others, winner):
    """All parts say the same, so the sparse one is as good as any; what it has of the weight decides."""
    unseen, noise = torch.randn(2, 60, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unseen, noise = unseen - unseen.mean(), noise - noise.mean()
    values = unseen + 0.5 * (noise - (noise @ unseen) / (unseen @ unseen) * unseen)  # no weight but 1 predicts better
    sparse = FittedLearner("sparse", lambda keep: unseen, unseen, None, polynomial=Spectrum.from_terms(3, {(0,): 1.0}))
    parts = [sparse, *(replace(sparse, name=f"dense {i}", polynomial=None) for i in range(others))]
    stack = Stack.of(parts, values)
    assert stack.winner == winner
    assert (stack.polynomial is not None) == (winner == "sparse")


def test_weights_of_few_masks_are_those_of_the_prior():
    """w ∝ (least loss / loss)^8, the mean of the values among the candidates: what twelve masks say hardly counts."""
    drawn = torch.linalg.qr(torch.randn(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    values, off = drawn[:, 0] * 12**0.5, 12**0.5 * drawn[:, 1:]
    loss = torch.tensor([0.5, 0.6, 0.7], dtype=torch.float64)
    values = values - values.mean()
    columns = values[:, None] + loss.sqrt() * (off - off.mean(0)) / (off - off.mean(0)).square().mean(0).sqrt()
    odds = (0.5 / torch.cat([loss, values.square().mean()[None]])) ** 8
    weights, offset = non_negative(columns, values)
    torch.testing.assert_close(weights, (odds / odds.sum())[:3], rtol=0.1, atol=0.01)
    assert offset == pytest.approx(0, abs=1e-9)
    many, _ = non_negative(columns.repeat(2000, 1), values.repeat(2000))
    x = torch.cat([columns, torch.ones(12, 1, dtype=torch.float64)], 1)
    assert float(many.sum()) == pytest.approx(
        float(torch.linalg.lstsq(x, values[:, None]).solution[:3].sum()), abs=0.05
    )


def test_trees_with_large_leaves_are_for_few_masks():
    few, many = ({part.name for part in Joint()._kinds(masks)} for masks in (MANY, MANY + 1))
    assert few - many == {"trees, large leaves"}
