"""Planted subjects by name (AND, OR, XOR, …), their task and their truth: the oracle for everything else.

``planted.conjunction(["a0.h1", "a1.h0"])`` is a `PlantedSubject` whose polynomial is known; `task` has prompts on which
its components act, with corrupt and reference prompts that begin with 0, so that zero, mean and resample ablation all
mean ``a_i = 0``; `truth` is what a decoder of all masks must find.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from spex_mech.ablation.backends.planted_file import checked_planted, load_planted, save_planted
from spex_mech.ablation.backends.planted_subject import (
    D_VOCAB,
    PlantedLayout,
    PlantedLink,
    PlantedSubject,
    planted_json,
    planted_record,
)
from spex_mech.components import Component, ComponentSet
from spex_mech.errors import ComponentError, FormatError
from spex_mech.tasks.task import Task
from spex_mech.walsh.set_rows import merge_sets, pad_sets
from spex_mech.walsh.spectrum import Basis, Spectrum

__all__ = [
    "D_VOCAB", "PlantedLayout", "PlantedSubject", "additive", "backup", "conjunction", "load_planted",
    "parity_subject", "planted_json", "polynomial", "random", "save_planted", "task", "truth",
]  # fmt: skip
Terms = Mapping[tuple[str, ...], float]
PLANTED_LENGTH = 3  # tokens a prompt: acting or not, scale, and the place where the answer is read


def polynomial(
    terms: Terms,
    *,
    basis: Literal["walsh", "mobius", "knockout"] = "mobius",
    layout: PlantedLayout = PlantedLayout(),
    link: PlantedLink = "identity",
    spread: float = 0.0,
    name: str = "planted",
) -> PlantedSubject:
    """A subject with f given as ``{names: coefficient}`` in one basis; ``()`` is the constant.

    >>> polynomial({("a0.h1", "a1.h0"): 2.0}).polynomial.sets
    ((1, 4),)

    Raises `FormatError`, all problems at once: names that are no head or neuron of the layout, settings out of range.
    """
    rows = [(list(names), coefficient) for names, coefficient in terms.items()]
    return checked_planted(
        planted_record(name, layout, basis, link, spread, rows), "this polynomial cannot be planted:"
    )


def additive(
    weights: Mapping[str, float], *, layout: PlantedLayout = PlantedLayout(), spread: float = 0.0
) -> PlantedSubject:
    """No interaction at all: ``f = Σ_i w_i a_i``."""
    terms: Terms = {(name,): weight for name, weight in weights.items()}
    return polynomial(terms, layout=layout, spread=spread, name="planted additive")


def conjunction(
    names: Sequence[str], *, strength: float = 1.0, layout: PlantedLayout = PlantedLayout(), spread: float = 0.0
) -> PlantedSubject:
    """AND, synergy: ``f = strength · Π_i a_i``, nothing without all of them."""
    return polynomial({tuple(names): strength}, layout=layout, spread=spread, name="planted AND")


def backup(
    names: Sequence[str], *, strength: float = 1.0, layout: PlantedLayout = PlantedLayout(), spread: float = 0.0
) -> PlantedSubject:
    """OR, redundancy: ``f = strength · (1 - Π_i (1 - a_i))``, any one of them is enough."""
    terms: Terms = {(): strength, tuple(names): -strength}
    return polynomial(terms, basis="knockout", layout=layout, spread=spread, name="planted OR")


def parity_subject(
    names: Sequence[str], *, strength: float = 1.0, layout: PlantedLayout = PlantedLayout(), spread: float = 0.0
) -> PlantedSubject:
    """XOR: ``f = strength · Π_i x_i`` with ``x_i = 2 a_i - 1``; one Walsh term, and no lower-order trace of it."""
    return polynomial({tuple(names): strength}, basis="walsh", layout=layout, spread=spread, name="planted XOR")


def random(
    n_sets: int,
    order: int,
    seed: int,
    *,
    hierarchical: bool = True,
    layout: PlantedLayout = PlantedLayout(),
    spread: float = 0.0,
) -> PlantedSubject:
    """`n_sets` random Walsh sets of up to `order` atoms with normal coefficients; same seed, same subject.

    With `hierarchical`, every non-empty subset of a chosen set is there too (what trees and peeling by parents count
    on); without, only the chosen sets are, of orders 1 to `order`. The coefficients shrink as 2^-order.
    """
    generator, n = torch.Generator().manual_seed(seed), len(layout.atoms)
    if not 1 <= order <= min(n, 12) or n_sets < 1:
        raise FormatError(
            f"random({n_sets} sets of order {order}) over {n} atoms: it needs at least one set and an order from 1 to "
            f"{min(n, 12)}."
        )
    chosen: dict[tuple[int, ...], None] = {}
    for _ in range(n_sets):
        size = int(torch.randint(1, order + 1, (1,), generator=generator))
        top = tuple(sorted(torch.randperm(n, generator=generator)[:size].tolist()))
        chosen |= dict.fromkeys(_subsets(top) if hierarchical else [top])
    weights = torch.randn(len(chosen), generator=generator, dtype=torch.float64).tolist()
    terms = {tuple(layout.atoms[i].name for i in s): w / 2 ** len(s) for s, w in zip(chosen, weights, strict=True)}
    return polynomial(terms, basis="walsh", layout=layout, spread=spread, name=f"planted random {seed}")


def task(n_prompts: int = 8, seed: int = 0) -> Task:
    """Prompts on which every component acts, with corrupt and reference prompts on which none does.

    Scales come in pairs 1 ± δ (and one 1 where `n_prompts` is odd), so their mean is exactly 1 and the mean of the
    logit difference over prompts is f itself where the link is the identity.
    """
    if n_prompts < 1:
        raise FormatError(f"a task needs at least one prompt, not {n_prompts}.")
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(2, D_VOCAB, (n_prompts // 2,), generator=generator)
    levels = torch.cat([half, 12 - half, torch.full((n_prompts % 2,), 6)]).tolist()
    active, silent = [[1, v, 0] for v in levels], [[0, v, 0] for v in levels]
    return Task(
        tokens=active,
        answers=[1] * n_prompts,
        distractors=[[0]] * n_prompts,
        positions=[PLANTED_LENGTH - 1] * n_prompts,
        metric="logit_diff",
        corrupt=silent,
        reference=silent,
    )


def truth(subject: PlantedSubject, components: ComponentSet, basis: Basis = Basis()) -> Spectrum:
    """f as a polynomial of the keep bits of `components`, exactly: what a decoder of all masks must find.

    An atom acts iff every component that covers it is kept, so ``a_i = Π_{j covers i} k_j``; atoms that nothing covers
    always act. With another link than the identity this is the polynomial before the link.

    Raises:
        ComponentError: components the subject does not have, or bound to one position (the truth would then depend
            on where each prompt is read).
        DecodeError: a set of more than 24 atoms.
    """
    components.check(subject.shape)
    bound = [c.name for c in components if any(atom.position is not None for atom in c.atoms)]
    if bound:
        raise ComponentError(
            f"{', '.join(bound)}: the truth of a planted subject is known for whole components, not for single "
            f"positions. Leave the @p out."
        )
    covers = _covers(subject.layout.atoms, components)
    mobius = subject.polynomial.rewrite(Basis("mobius"))
    sets = [{j for i in s for j in covers[i]} for s in mobius.sets]
    members, coefficients = merge_sets([pad_sets(sets)], [mobius.coefficients])
    found = Spectrum(len(components), members, coefficients, Basis("mobius")).rewrite(basis)
    return found.select(found.coefficients != 0)


def _covers(atoms: ComponentSet, components: ComponentSet) -> list[set[int]]:
    """For every atom, the components (by bit) that ablate it."""
    found: dict[Component, set[int]] = {atom: set() for atom in atoms}
    layers: dict[tuple[str, int], list[Component]] = {}
    for atom in atoms:
        layers.setdefault((atom.kind, atom.layer), []).append(atom)
    for bit, component in enumerate(components):
        for part in component.atoms:
            kind = {"kv": "head", "attn": "head", "mlp": "neuron"}.get(part.kind, part.kind)
            row = layers[kind, part.layer]
            for atom in row if part.kind in ("attn", "mlp") else [row[part.index]]:
                found[atom].add(bit)
    return list(found.values())


def _subsets(members: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All non-empty subsets.

    >>> _subsets((2, 5))
    [(2,), (5,), (2, 5)]
    """
    return [tuple(m for j, m in enumerate(members) if bits >> j & 1) for bits in range(1, 1 << len(members))]
