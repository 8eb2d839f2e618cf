"""Words follow measurements: every sentence on a set is recomputed from the values that were measured."""

import re
from itertools import chain, combinations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from spex_mech.api.discover import decode
from spex_mech.circuit.losses import HIDDEN, SLACK, Losses
from spex_mech.components import ComponentSet
from spex_mech.errors import ComponentError
from spex_mech.store.responses import Responses
from spex_mech.store.set_losses import losses_of
from spex_mech.walsh.masks.design import MaskDesign

WORDS = {"any one of them is enough", "they back each other up", "all of them are needed"}


def subsets(names):
    return chain.from_iterable(combinations(names, k) for k in range(len(names) + 1))


def found_of(values, n, metric="logit_diff"):
    """A run of all masks with these values; the value of a mask by its number, bit i set where i is kept."""
    keep = MaskDesign.complete(n).keep()
    number = (keep.long() << torch.arange(n)).sum(1)
    table = torch.tensor(values, dtype=torch.float32)[number][:, None]
    names = ComponentSet.of([f"a0.h{i}" for i in range(n)])
    record = {"design": MaskDesign.complete(n).to_dict(), "task": {"metric": metric}}
    return decode(Responses(names, keep, table, "logit", record), decoder="exact")


def check(said: str, names, value, sign=1):
    """What the sentence claims, from `value(lost names)`."""
    intact = value(())
    loss = {t: sign * (intact - value(t)) for t in subsets(names)}
    told = re.findall(r"losing ([\w. ]+?) (costs|gains) ([\d.,e-]+) logit", said.lower())
    assert [name for name, *_ in told] == [*names, "all of them"]
    for name, verb, shown in told:
        true = loss[tuple(names)] if name == "all of them" else loss[(name,)]
        assert (true >= 0) == (verb == "costs")
        assert float(shown.replace(",", "")) == pytest.approx(abs(true), rel=0.006, abs=1e-6)
    excess = loss[tuple(names)] - sum(loss[(name,)] for name in names)
    if gap := re.search(r", ([\d.,e-]+) (more|less) than", said):
        assert (excess > 0) == (gap[2] == "more")
        assert float(gap[1].replace(",", "")) == pytest.approx(abs(excess), rel=0.006, abs=1e-5)
    whole, parts = loss[tuple(names)], [t for t in subsets(names) if 0 < len(t) < len(names)]
    rest = {t: tuple(n for n in names if n not in t) for t in parts}
    bar = SLACK * whole
    near = 1e-5 * max(map(abs, loss.values()), default=1)
    if "any one of them is enough" in said:
        assert all(loss[t] <= bar + near for t in parts)
        assert whole > 0
    if "back each other up" in said:
        hidden = HIDDEN * whole - near
        assert all(whole - loss[t] >= hidden and whole - loss[t] - loss[rest[t]] >= hidden for t in parts)
        assert whole > 0
    if "all of them are needed" in said:
        assert all(loss[t] >= whole - bar - near for t in parts)
        assert whole > 0
    assert sum(word in said for word in WORDS) <= 1


def by_lost(values, names):
    return lambda lost: float(
        torch.tensor(values, dtype=torch.float32)[sum(1 << i for i, name in enumerate(names) if name not in lost)]
    )


VALUES = st.floats(-20, 20, width=32)
A16 = [-12.0, 0.0, 0.0, 0.0, 11.7, 5.4, -2.1, 11.7]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 3), st.lists(VALUES, min_size=8, max_size=8), st.sampled_from(["logit_diff", "kl"]))
@example(2, [3.62, 6.12, 11.69, 11.77, 0, 0, 0, 0], "logit_diff")
@example(3, A16, "logit_diff")
@example(2, [0, 1, 1, 1, 0, 0, 0, 0], "logit_diff")
def test_what_is_said_of_a_measured_set_is_what_was_measured(n, values, metric):
    found = found_of(values[: 1 << n], n, metric)
    names = found.components.names
    losses = losses_of(found, names)
    assert losses.measured
    check(losses.sentence(), names, by_lost(values, names), 1 if metric == "logit_diff" else -1)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ([0, 1, 1, 1], "enough"), ([0, 0, 0, 1], "needed"), ([0, 1, 1, 2], None), ([0, 0.8, 0.8, 1], "backups"),
        ([3.62, 6.12, 11.69, 11.77], None), (A16, None), ([1, 0, 0, 1], None), ([0, 0, 0, 0], None),
        ([0, 1, 1, 1, 1, 1, 1, 1], "enough"), ([0, 0, 0, 0, 0, 0, 0, 1], "needed"),
    ],
)  # fmt: skip
def test_words_are_said_only_where_the_numbers_bear_them(values, word):
    n = len(values).bit_length() - 1
    found = found_of(values, n)
    assert losses_of(found, found.components.names).word == word


def test_sampled_masks_are_averaged_and_say_so():
    keep = MaskDesign.bernoulli(6, 40, 0.5, 0).keep()
    keep = keep[~keep[:, 2:].all(1)]
    values = (2.0 * keep[:, 0] * keep[:, 1] + keep[:, 2])[:, None].float()
    names = ComponentSet.of([f"a0.h{i}" for i in range(6)])
    found = decode(Responses(names, keep, values, "logit", {}), decoder="proxyspex")
    losses = losses_of(found, ("a0.h0", "a0.h1"))
    assert not losses.measured
    assert losses.whole == pytest.approx(2, abs=0.4)
    assert "averaged over masks of the others" in losses.sentence()
    with pytest.raises(ComponentError, match="1 to 8"):
        losses_of(found, ())


def test_one_component_has_no_word():
    assert Losses(("a",), {frozenset(): 0.0, frozenset({"a"}): 1.0}, "logit", True).word is None
