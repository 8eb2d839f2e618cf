"""`PlantedSubject`: a model that is a known polynomial of its own components, ablated through sites like any other.

It has layers of heads and MLP neurons, but the answer's logit is ``link(scale(prompt) · f(a))`` exactly, where ``a_i``
is 1 where component i acts and 0 where it does not, and f is a multilinear polynomial that is given. Every other logit
is 0, so that the logit difference is known for every mask, before any run. A component acts only in prompts whose first
token is 1.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spex_mech.ablation.subject import Edit, Site
from spex_mech.components import Component, ComponentSet, ModelShape
from spex_mech.walsh.spectrum import Spectrum

PlantedLink = Literal["identity", "tanh", "sigmoid"]

PLANTED_SCHEMA = "spex_mech.planted/1"
D_VOCAB = 11  # 0 and 1 are the distractor and the answer; 2 to 10 set a prompt's scale, 6 being the middle
PLANTED_LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": torch.clone,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


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
            value = PLANTED_LINKS[self.link](scale * self._polynomial_at(acting))
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


def planted_json(subject: PlantedSubject) -> str:
    """The subject's file, the same text for the same subject."""
    names = subject.layout.atoms.names
    terms = [([names[i] for i in s], coefficient) for s, coefficient in subject.polynomial.terms()]
    kind = subject.polynomial.basis.kind
    record = planted_record(subject.name, subject.layout, kind, subject.link, subject.spread, terms)
    return json.dumps(record, indent=1, allow_nan=False) + "\n"


def planted_record(
    name: str, layout: PlantedLayout, basis: str, link: str, spread: float, terms: Iterable[tuple[list[str], float]]
) -> dict[str, Any]:
    """What a file holds; nobody has checked it yet."""
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
