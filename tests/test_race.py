"""The race of the joint decoder's parts: what a stack can spare is not fitted to every fold."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from spex_mech.bench.functions import planted_function, support_f1
from spex_mech.walsh.decoders.proxyspex import ProxySpex
from spex_mech.walsh.decoders.trees import Boosting
from spex_mech.walsh.decoding import Samples, fold_masks, r_squared
from spex_mech.walsh.joint.base_learners import FINE_FOLDS, MANY, TrainingData, coarse_folds
from spex_mech.walsh.joint.joint import Joint
from spex_mech.walsh.joint.racing import race
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Basis

PROCESSES = {name: replace(process, steps=30, subset=128) for name, process in Joint().processes.items()}
QUICK = Joint(boosting=Boosting(trees=60), processes=PROCESSES, most_sets=300)
MASKS = 1400


def samples(kind="hierarchical", n=20, masks=MASKS, noise=0.2, seed=0, **settings):
    function = planted_function(kind, n, seed=seed, **settings)
    design = MaskDesign.bernoulli(n, masks, 0.5, seed)
    return function, Samples(design.keep(), function.noisy(design.keep(), noise, seed + 1)[:, None].float(), design)


def given(known):
    fold = fold_masks(known.groups, FINE_FOLDS, 0)
    return TrainingData(known, fold, Basis(), 0, ProxySpex().grow(known, coarse_folds(fold), Basis(), 0))


@dataclass(frozen=True)
class Says:
    """A part that says what it is told to."""

    name: str
    says: torch.Tensor
    asked: list[str] = field(default_factory=list)

    def probe(self, given):
        self.asked.append(self.name)
        return self.says[given.probed]

    def cross_fit(self, given):
        raise AssertionError("a race only looks")


@pytest.fixture(scope="module")
def known():
    return samples(sets=3)[1]


def noise(seed, scale):
    return scale * torch.randn(MASKS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_what_says_the_same_or_nothing_is_spared(known):
    truth = known.mean_values.double()
    good = truth + noise(0, 0.3)
    parts = [Says("good", good), Says("same", good.clone()), Says("chance", noise(7, 1.0))]
    found = race(parts, given(known), sure=0.9999)
    assert [part.name for part in found.needed] == ["good"]
    assert set(found.probes) == {"good", "same", "chance"}
    assert all(look["weight"] == 0 for look in found.probes.values())
    rows = given(known).probed
    assert found.probes["good"]["r2"] == pytest.approx(r_squared(truth[rows], good[rows]))


def test_parts_that_help_each_other_stay(known):
    """Each errs on its own, so their mean is better than any."""
    truth = known.mean_values.double()
    parts = [Says(str(seed), truth + noise(seed, 0.3)) for seed in range(3)]
    assert race(parts, given(known), sure=0.9999).needed == parts


def test_of_equals_the_first_stays(known):
    good = known.mean_values.double() + noise(0, 0.3)
    found = race([Says("one", good), Says("other", good + 1e-6)], given(known), sure=0.9999)
    assert [part.name for part in found.needed] == ["one"]


def test_where_the_first_is_sure_no_other_is_looked_at(known):
    truth = known.mean_values.double()
    other = Says("other", truth)
    found = race([Says("first", truth + noise(0, 1e-3)), other], given(known), sure=0.999)
    assert [part.name for part in found.needed] == ["first"]
    assert not other.asked


def test_every_part_looks_at_masks_that_it_has_not_seen(known):
    """Other values on the looked fold change nothing that is said of it."""
    changed = known.values.clone()
    changed[given(known).probed] += torch.randn(1, generator=torch.Generator().manual_seed(0)) * 50
    for part in QUICK._kinds(MASKS):
        one, other = (part.probe(given(Samples(known.keep, v, known.design))) for v in (known.values, changed))
        if part.name != "proxyspex":  # which chooses there
            assert torch.allclose(one, other, atol=1e-4), part.name


def test_what_a_look_has_fitted_is_not_fitted_again(known, monkeypatch):
    trained = []
    train = Boosting.train

    def counted(self, keep, *rest):
        trained.append(len(keep))
        return train(self, keep, *rest)

    monkeypatch.setattr(Boosting, "train", counted)
    given_once = given(known)
    trees = next(part for part in QUICK._kinds(MASKS) if part.name == "trees")
    trees.probe(given_once)
    assert len(trained) == 1
    trees.cross_fit(given_once)
    seen = [int((given_once.coarse_folds() != number).sum()) for number in range(4)]
    assert sorted(trained) == sorted(seen)


def test_the_process_of_many_masks_predicts_each_from_all_others():
    """As far off as on fresh masks, though its covariance comes from halves."""
    function, many = samples("tanh", n=20, sets=6, seed=1, noise=0.05)
    part = next(part for part in QUICK._kinds(MASKS) if part.name == "process, dense")
    found = part.cross_fit(given(many))
    fresh = MaskDesign.bernoulli(20, 3000, 0.5, 99).keep()
    alike = r_squared(function.noisy(fresh, 0.05, 7), found.predict(fresh))
    assert r_squared(many.mean_values.double(), found.out_of_fold) == pytest.approx(alike, abs=0.05)


def test_the_record_tells_of_what_was_spared():
    """Of many masks of a sparse function pursuit is all that is needed; its sets are those planted."""
    function, many = samples(n=24, sets=4, masks=1 + MANY * 5 // 4)
    decoded = QUICK.decode(many, seed=0)
    assert decoded.stats["winner"] == "pursuit"
    parts = decoded.stats["parts"]
    assert {"pursuit", "proxyspex", "line", "trees", "line+trees", *PROCESSES} == set(parts)
    assert parts["pursuit"]["weight"] > 0.5
    assert sum(part["weight"] > 0 for part in parts.values()) < 4
    assert support_f1(function.sets, set(decoded.spectrum.sets)) >= 0.98


def test_a_dense_function_of_many_masks_is_read_in_closed_form():
    """A process alone is needed, and the polynomial loses next to nothing of it."""
    weights = torch.rand(14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def smooth(keep):
        return torch.exp(-((~keep).double() @ weights) / 2) * 10

    design = MaskDesign.bernoulli(14, MASKS, 0.5, 3)
    values = smooth(design.keep()) + noise(5, 0.2)
    decoded = QUICK.decode(Samples(design.keep(), values[:, None].float(), design), seed=0)
    fresh = MaskDesign.bernoulli(14, 3000, 0.5, 98).keep()
    assert decoded.stats["winner"] == "stack"
    assert r_squared(smooth(fresh), decoded.spectrum.evaluate(fresh)) > 0.98
