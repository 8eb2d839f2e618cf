"""Planted subjects: models that are a known polynomial of their own components, the oracle for everything else.

A `PlantedSubject` has layers of heads and MLP neurons like any other subject and is ablated through the same sites, but
the answer's logit is ``link(scale(prompt) · f(a))`` exactly, where ``a_i`` is 1 where component i acts and 0 where it
does not, and f is a multilinear polynomial that is given. Every other logit is 0, so that the logit difference is
known for every mask, before any run. A component acts only in prompts whose first token is 1; the reference and
corrupt prompts of `task` begin with 0, so zero, mean and resample ablation all mean ``a_i = 0``.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spex_mech.ablation.subject import Edit, Site
from spex_mech.components import Component, ComponentSet, ModelShape
from spex_mech.errors import ComponentError, FormatError, all_problems
from spex_mech.tasks.task import Task
from spex_mech.walsh.set_rows import merge_sets, pad_sets
from spex_mech.walsh.spectrum import Basis, Spectrum

PlantedLink = Literal["identity", "tanh", "sigmoid"]
Terms = Mapping[tuple[str, ...], float]

PLANTED_SCHEMA = "spex_mech.planted/1"
D_VOCAB = 11  # 0 and 1 are the distractor and the answer; 2 to 10 set a prompt's scale, 6 being the middle
PLANTED_LENGTH = 3  # tokens a prompt: acting or not, scale, and the place where the answer is read
_LINKS: dict[str, Callable[[Tensor], Tensor]] = {"identity": torch.clone, "tanh": torch.tanh, "sigmoid": torch.sigmoid}
_BASES = ("walsh", "mobius", "knockout")
_MAX_BYTES = 1 << 26
_MAX_ATOMS = 1 << 18  # a few digits in a file of a stranger must not fill the memory


@dataclass(frozen=True)
class PlantedLayout:
    """How many layers, heads a layer and MLP neurons a layer (0: no MLPs) a planted subject has."""

    n_layers: int = 2
    n_heads: int = 4
    d_mlp: int = 0

    @cached_property
    def atoms(self) -> ComponentSet:
        """All heads and neurons, layer by layer."""
        found: list[Component] = []
        for layer in range(self.n_layers):
            found += [Component("head", layer, i) for i in range(self.n_heads)]
            found += [Component("neuron", layer, i) for i in range(self.d_mlp)]
        return ComponentSet(tuple(found))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of every layer, in the order of a forward pass; every part is one feature wide."""
        found = []
        for layer in range(self.n_layers):
            found.append(Site(layer, "heads", self.n_heads, 1))
            if self.d_mlp:
                found += [Site(layer, "neurons", self.d_mlp, 1), Site(layer, "mlp", 1, 1)]
        return tuple(found)


@dataclass(frozen=True, eq=False)
class PlantedSubject:
    """A `Subject` whose logit difference is ``link(scale · f(a))``.

    Attributes:
        name: for provenance and messages.
        layout: layers, heads, neurons.
        polynomial: f over `layout.atoms`, in any basis; evaluated in float64.
        link: what f goes through; ``"tanh"`` and ``"sigmoid"`` are for studies of saturating read-outs.
        spread: prompts whose second token is v, 2 ≤ v ≤ 10, scale f by ``1 + spread (v - 6) / 4``; others by 1.
        device: where it runs.
    """

    name: str
    layout: PlantedLayout
    polynomial: Spectrum
    link: PlantedLink = "identity"
    spread: float = 0.0
    device: torch.device = torch.device("cpu")

    @cached_property
    def shape(self) -> ModelShape:
        layers, heads, neurons = self.layout.n_layers, self.layout.n_heads, self.layout.d_mlp
        all_heads = (heads,) * layers
        return ModelShape(self.name, all_heads, all_heads, (neurons > 0,) * layers, (neurons,) * layers, D_VOCAB)

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        return self.layout.sites

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        digest = hashlib.sha256(planted_json(self).encode()).hexdigest()
        return {
            "model": self.name,
            "backend": "planted",
            "weights_sha256": digest,
            "weight_processing": "none",
            "dtype": "float64",
            "attention": "none",
        }

    def forward(
        self, tokens: Int[Tensor, "row pos"], edits: Mapping[Site, Edit], positions: Int[Tensor, " row"] | None
    ) -> Float[Tensor, "row vocab"] | Float[Tensor, "row pos vocab"]:
        """Logits, float32; see `Subject.forward`. What is read at a position is what acts at that position."""
        with torch.inference_mode():
            tokens = tokens.to(self.device)
            acting = self._activations(tokens, edits)
            if positions is not None:
                acting = acting[torch.arange(len(tokens), device=self.device), positions.to(self.device)]
            scale = self.scales(tokens).reshape(-1, *([1] * (acting.ndim - 2)))
            value = _LINKS[self.link](scale * self._polynomial_at(acting))
            logits = torch.zeros(*value.shape, D_VOCAB, device=self.device)
            logits[..., 1] = value.float()
        return logits

    def scales(self, tokens: Int[Tensor, "row pos"]) -> Float[Tensor, " row"]:
        """The factor by which each prompt scales f, float64."""
        if tokens.shape[1] < 2:
            return torch.ones(len(tokens), dtype=torch.float64, device=tokens.device)
        level = tokens[:, 1]
        return torch.where(level >= 2, 1 + self.spread * (level - 6).double() / 4, 1.0)

    @cached_property
    def _used(self) -> list[int]:
        """The atoms that occur in f at all."""
        return sorted({i for s in self.polynomial.sets for i in s})

    def _activations(self, tokens: Tensor, edits: Mapping[Site, Edit]) -> Float[Tensor, "row pos used"]:
        """a_i for the atoms in use. A neuron acts where both it and its MLP's output are let through."""
        base = (tokens[:, :1] == 1).float()[..., None].expand(*tokens.shape, 1)
        after = {
            site: edits[site](base.repeat(1, 1, site.parts))
            if site in edits
            else base.expand(*tokens.shape, site.parts)
            for site in self.sites
        }
        columns, atoms = [], self.layout.atoms
        for i in self._used:
            layer, index = atoms[i].layer, atoms[i].index
            if atoms[i].kind == "head":
                columns.append(after[Site(layer, "heads", self.layout.n_heads, 1)][..., index])
            else:
                neuron = after[Site(layer, "neurons", self.layout.d_mlp, 1)][..., index]
                columns.append(neuron * after[Site(layer, "mlp", 1, 1)][..., 0])
        return torch.stack(columns, -1) if columns else base[..., :0]

    def _polynomial_at(self, acting: Float[Tensor, "*row used"]) -> Float[Tensor, "*row"]:
        offset, slope = self.polynomial.basis.affine
        factors, column = offset + slope * acting.double(), {atom: j for j, atom in enumerate(self._used)}
        total = torch.zeros(acting.shape[:-1], dtype=torch.float64, device=acting.device)
        for members, coefficient in self.polynomial.terms():
            total = total + coefficient * factors[..., [column[i] for i in members]].prod(-1)
        return total


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
    return _build(_record(name, layout, basis, link, spread, rows), "this polynomial cannot be planted:")


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


def task(subject: PlantedSubject, n_prompts: int = 8, seed: int = 0) -> Task:
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
    return _without_zeros(Spectrum(len(components), members, coefficients, Basis("mobius")).rewrite(basis))


def planted_json(subject: PlantedSubject) -> str:
    """The subject's file, the same text for the same subject."""
    names = subject.layout.atoms.names
    terms = [([names[i] for i in s], coefficient) for s, coefficient in subject.polynomial.terms()]
    kind = subject.polynomial.basis.kind
    record = _record(subject.name, subject.layout, kind, subject.link, subject.spread, terms)
    return json.dumps(record, indent=1, allow_nan=False) + "\n"


def save_planted(subject: PlantedSubject, path: str | Path) -> Path:
    """Write `planted.json` at `path` (a file, or a folder to hold it); returns the file's path."""
    file = _file(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(planted_json(subject), encoding="utf-8")
    return file


def load_planted(path: str | Path, device: torch.device | str | None = None) -> PlantedSubject:
    """Read `planted.json` (the file, or the folder that holds it). Data only: nothing in it is run.

    Raises:
        FormatError: the file is missing, too large, not JSON, of another schema, or any field is wrong; all problems.
    """
    file = _file(path)
    subject = _build(_read(file), f"{file} is not a planted subject:")
    return subject if device is None else replace(subject, device=torch.device(device))


def _record(
    name: str, layout: PlantedLayout, basis: str, link: str, spread: float, terms: Iterable[tuple[list[str], float]]
) -> dict[str, Any]:
    sizes = {"n_layers": layout.n_layers, "n_heads": layout.n_heads, "d_mlp": layout.d_mlp}
    rows = [{"set": names, "coefficient": coefficient} for names, coefficient in terms]
    return {
        "schema": PLANTED_SCHEMA,
        "name": name,
        **sizes,
        "basis": basis,
        "link": link,
        "spread": spread,
        "terms": rows,
    }


def _build(record: Any, headline: str) -> PlantedSubject:
    """A subject from a record that nobody has checked yet."""
    problems = _problems(record)
    if problems:
        raise FormatError(all_problems(headline, problems))
    layout = PlantedLayout(record["n_layers"], record["n_heads"], record["d_mlp"])
    terms: dict[Iterable[int], float] = {
        tuple(sorted(layout.atoms.indices(term["set"]))): float(term["coefficient"]) for term in record["terms"]
    }
    planted = Spectrum.from_terms(len(layout.atoms), terms, Basis(record["basis"]))
    return PlantedSubject(record["name"], layout, planted, record["link"], float(record["spread"]))


def _file(path: str | Path) -> Path:
    return Path(path) if Path(path).suffix == ".json" else Path(path) / "planted.json"


def _read(file: Path) -> Any:
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise FormatError(f"{file} is larger than 64 MiB, which no planted subject needs.")
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise FormatError(
            f"{file} cannot be read: {error.strerror}. A planted card keeps it in its model folder."
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise FormatError(f"{file} is not JSON: {error}.") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf and value == value


def _is_count(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


_FIELDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "schema": (f"{PLANTED_SCHEMA!r}", lambda v: v == PLANTED_SCHEMA),
    "name": ("a text", lambda v: isinstance(v, str)),
    "n_layers": ("a whole number from 1 to 1,000", lambda v: _is_count(v, 1, 1000)),
    "n_heads": ("a whole number from 1 to 1,000", lambda v: _is_count(v, 1, 1000)),
    "d_mlp": ("a whole number from 0 to 100,000", lambda v: _is_count(v, 0, 100_000)),
    "basis": (f"one of {', '.join(_BASES)}", lambda v: v in _BASES),
    "link": (f"one of {', '.join(_LINKS)}", lambda v: isinstance(v, str) and v in _LINKS),
    "spread": ("a number from 0 to 1", lambda v: _is_number(v) and 0 <= v <= 1),
    "terms": ("a list", lambda v: isinstance(v, list)),
}


def _problems(record: Any) -> list[str]:
    """Everything that is wrong with a planted record; nothing where it is sound."""
    if not isinstance(record, dict):
        return [f"it is {type(record).__name__}, not an object."]
    found = [f"unknown field {key!r}." for key in sorted(set(record) - set(_FIELDS), key=str)]
    for key, (wanted, fits) in _FIELDS.items():
        if key not in record:
            found.append(f"no field {key!r}; it must be {wanted}.")
        elif not fits(record[key]):
            found.append(f"{key} is {record[key]!r:.60}; it must be {wanted}.")
    if not found and (atoms := record["n_layers"] * (record["n_heads"] + record["d_mlp"])) > _MAX_ATOMS:
        found.append(f"it has {atoms:,} heads and neurons; a planted subject has at most {_MAX_ATOMS:,}.")
    return found or _term_problems(record)


def _term_problems(record: dict[str, Any]) -> list[str]:
    atoms, found, seen = PlantedLayout(record["n_layers"], record["n_heads"], record["d_mlp"]).atoms, [], set()
    for number, term in enumerate(record["terms"]):
        if not isinstance(term, dict) or set(term) != {"set", "coefficient"} or not isinstance(term["set"], list):
            found.append(f"term {number} must be an object with a list 'set' and a number 'coefficient'.")
            continue
        unknown = [name for name in term["set"] if not isinstance(name, str) or name not in atoms]
        if unknown:
            found.append(f"term {number}: {unknown!r:.80} are not heads or neurons of this layout ({atoms!r}).")
        elif len(set(term["set"])) < len(term["set"]):
            found.append(f"term {number} names a component twice.")
        elif frozenset(term["set"]) in seen:
            found.append(f"term {number} repeats the set {term['set']}.")
        else:
            seen.add(frozenset(term["set"]))
        if not _is_number(term["coefficient"]):
            found.append(f"term {number}: the coefficient {term['coefficient']!r:.40} is not a finite number.")
    return found


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


def _without_zeros(spectrum: Spectrum) -> Spectrum:
    return spectrum.select(spectrum.coefficients != 0)
