"""`ModelSubject`: what all backends of live models share; a new one is an `Architecture` and one method."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spex_mech.ablation.identity import describe_probe
from spex_mech.ablation.leave_out import cut_short
from spex_mech.ablation.linear_maps import reading_weights
from spex_mech.ablation.mixtures import SumForm
from spex_mech.ablation.own_sites import Own, OwnLatents, describe_own, probe_latents
from spex_mech.ablation.place_hooks import in_every_call
from spex_mech.ablation.sites import Architecture, Place, possible_shortcuts
from spex_mech.ablation.subject import Certificate, Edit, OwnCertificate, Shortcuts, Site, shortcuts_of
from spex_mech.ablation.turns import ablated_here, turn
from spex_mech.ablation.weights import describe_hooks, describe_weights, hash_weights
from spex_mech.ablation.wrappers import as_written, is_compiled
from spex_mech.components import ModelShape
from spex_mech.errors import ModelError


class ModelSubject(ABC):
    """A live model in eval mode, with its sites; see `spex_mech.ablation.subject.Subject`.

    Attributes:
        model: what the user gave, and calls inside `ablated`.
        module: the torch module that computes.
        shortcuts: those that binding saw hold; none before.
        certificates: what binding verified of each layer's components; see `spex_mech.ablation.contract`.
        own: sites of the user's own, each as it was asked for and the path of its module; `own_certificates` what was
            verified of them; `spliced` those whose autoencoder is in every pass.
    """

    backend: ClassVar[str]

    def __init__(self, model: Any, module: nn.Module, architecture: Architecture, weight_processing: str = "none"):
        self.model, self.module = model, module.eval()
        self.shortcuts, self.certificates = Shortcuts(), tuple[Certificate, ...]()
        self.own, self.own_certificates = dict[Site, tuple[Own, str]](), tuple[OwnCertificate, ...]()
        self._mlps = architecture.leave_out.mlps
        self._architecture, self._parts = architecture, tuple(module.modules())
        self._places = {place.site: place for place in architecture.places}
        self._further = {layer: list(places) for layer, places in architecture.further.items()}
        self._own_widths, self.spliced = dict[Site, int](), tuple[Site, ...]()
        self._weight_processing, self._compiled = weight_processing, is_compiled(module)

    def __repr__(self) -> str:
        return f"{type(self).__name__} of {self.shape.describe()} on {self.device}"

    @property
    def shape(self) -> ModelShape:
        return self._architecture.shape

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(self._places)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def n_ctx(self) -> int | None:
        """The longest prompt the model takes, where its config says."""
        return getattr(getattr(self.module, "config", None), "max_position_embeddings", None)

    @property
    def provenance(self) -> Mapping[str, Any]:
        """As things are now: weights may have been edited, hooks left, adapters switched, since binding."""
        with turn(self.module):  # hooks of other threads' passes are no hooks of the user
            return {
                "backend": self.backend,
                "weight_processing": self._weight_processing,
                **describe_weights(self.module),
                "weights_sha256": hash_weights(self.module),
                **describe_hooks(self.module),
                "probe": describe_probe(self, self.module),
                **({"sites": self._describe_own()} if self.own else {}),
            }

    def _describe_own(self) -> dict[str, Any]:
        probes = self.own_probes()
        return {
            site.label: {
                **describe_own(spec, path),
                **({"probe": {"logits": probes[site.label].tolist()}} if site.label in probes else {}),
            }
            for site, (spec, path) in self.own.items()
        }

    def own_probes(self) -> dict[str, Float[Tensor, " number"]]:
        """What the autoencoders on sites of the user's own compute of fixed numbers, by name."""
        some = next(p for p in self.module.parameters() if p.is_floating_point())
        latents = {site: spec for site, (spec, _) in self.own.items() if isinstance(spec, OwnLatents)}
        return {site.label: probe_latents(spec, self._own_widths[site], some) for site, spec in latents.items()}

    def reading_weights(self, site: Site) -> list[Float[Tensor, "feature out"]]:
        """The weights that read a head or neuron site, and those of adapters that read it too, as writable views; none
        where they are packed."""
        return reading_weights(self._places[site].module)

    def possible_shortcuts(self) -> Shortcuts:
        """What might be left out in a model of this form; binding tries it."""
        return possible_shortcuts(self._architecture, self.sites)

    def forward(
        self,
        tokens: Int[Tensor, "row pos"],
        edits: Mapping[Site, Edit],
        positions: Int[Tensor, " row"] | None,
        growth: Mapping[int, Int[Tensor, " row"]] | None = None,
    ) -> Float[Tensor, "row vocab"] | Float[Tensor, "row pos vocab"]:
        """See `Subject.forward`; ``growth[layer]`` says which row before that block each row in it comes from."""
        if any(part.training for part in self._parts):
            self._refuse_training()
        edits = {**edits, **{site: as_it_is for site in self.spliced if site not in edits}}
        wanted, which = (None, None) if positions is None else positions.unique(return_inverse=True)
        cuts = cut_short(self._architecture.leave_out, shortcuts_of(self, edits), edits, positions, growth)
        with turn(self.module), torch.inference_mode(), as_written(self._compiled):
            logits = self._logits(tokens, edits, None if wanted is None else wanted.to(tokens.device), cuts)
            if positions is None or which is None:
                return logits
            if logits.ndim == 2:  # of a sequence classifier, one row a prompt
                return _of_last(logits, positions, tokens.shape[1])
            if logits.shape[1] == 1:
                return logits[:, 0]
            at = positions if logits.shape[1] == tokens.shape[1] else which
            return logits[torch.arange(len(logits), device=logits.device), at.to(logits.device)]

    def _refuse_training(self) -> None:
        names = [name for name, part in self.module.named_modules() if part.training]
        where = "" if "" in names else f" ({', '.join(names[:3])}{' …' if len(names) > 3 else ''})"
        raise ModelError(
            f"{self.shape.name} is in training mode{where}, in which dropout makes values random. Call .eval() on it; "
            "it was in eval mode when it was bound."
        )

    @property
    def mlps(self) -> Mapping[int, nn.Module]:
        """The MLP of each layer, where it is a module; a shared expert may stand beside it."""
        return self._mlps

    @property
    def blocks(self) -> tuple[nn.Module, ...]:
        """The decoder blocks; each takes the residual stream first and returns it."""
        return self._architecture.leave_out.blocks

    def mlp_module(self, layer: int) -> str:
        """The module at which a layer's MLP site is, for messages."""
        place = self.mlp_place(layer)
        if place is None:
            return "nothing"
        beside = f" and {type(place.form.first).__name__}" if isinstance(place.form, SumForm) else ""
        return f"output of {type(place.module).__name__}{beside}"

    def move_mlp(self, layer: int) -> bool:
        """Put a layer's MLP site where it might be instead; False where no place is left."""
        if not self._further.get(layer):
            return False
        place = self._further[layer].pop(0)
        self._places[place.site] = place
        if isinstance(place.form, SumForm):  # of two modules: rows cannot be left out of one of them alone
            left = {k: mlp for k, mlp in self._architecture.leave_out.mlps.items() if k != layer}
            leave_out = replace(self._architecture.leave_out, mlps=left)
            self._architecture = replace(self._architecture, leave_out=leave_out)
        return True

    def extend(self, places: Iterable[Place], **shape: Any) -> None:
        """Add sites, before the MLP's of their layer where they are parts of it, and what the shape says of them."""
        added = list(places)
        inside = [place for place in added if place.site.kind in ("shared", "experts")]
        found = dict[Site, Place]()
        for site, place in self._places.items():
            if site.kind == "mlp":
                found |= {p.site: p for p in inside if p.site.layer == site.layer}
            found[site] = place
        self._places = found | {place.site: place for place in added if place not in inside}
        self._architecture = replace(self._architecture, shape=replace(self.shape, **shape))

    def add_own(self, place: Place, spec: Own, path: str, reads: int) -> None:
        """Add a site of the user's own; `reads` is how many features its autoencoder reads."""
        self.extend([place], own=(*self.shape.own, (spec.name, place.site.parts)))
        self.own[place.site], self._own_widths[place.site] = (spec, path), reads
        if isinstance(spec, OwnLatents) and not spec.error:
            self.spliced = (*self.spliced, place.site)

    def drop(self, *kinds: str) -> None:
        """Take the sites of some kinds out again."""
        self._places = {site: place for site, place in self._places.items() if site.kind not in kinds}

    def mlp_place(self, layer: int) -> Place | None:
        """Where a layer's MLP site is."""
        return next((p for site, p in self._places.items() if (site.kind, site.layer) == ("mlp", layer)), None)

    @abstractmethod
    def _logits(
        self,
        tokens: Int[Tensor, "row pos"],
        edits: Mapping[Site, Edit],
        wanted: Int[Tensor, " position"] | None,
        cuts: AbstractContextManager[None],
    ) -> Float[Tensor, "row pos vocab"]:
        """One forward pass with the edits in place and, after them, the cuts.

        Args:
            wanted: the positions that will be read, ascending; where the library can, only they are unembedded. The
                result has these, all positions, or the one position of each row that the cuts have left.
        """

    @contextmanager
    def in_force(self, edits: Mapping[Site, Edit]) -> Iterator[Any]:
        """The edits in every forward pass of the model itself, whoever calls it, for the length of a with-block."""
        edits = {**edits, **{site: as_it_is for site in self.spliced if site not in edits}}
        placed = [(self._places[site], edit) for site, edit in edits.items()]
        blocks = self._architecture.leave_out.blocks
        with ablated_here(self.module), as_written(self._compiled), in_every_call(blocks[0], placed):
            yield self.model


def as_it_is(x: Tensor) -> Tensor:
    """The edit that changes nothing."""
    return x


def _of_last(logits: Tensor, positions: Int[Tensor, " row"], length: int) -> Tensor:
    if bool((positions != length - 1).any()):
        raise ModelError(
            "this model classifies sequences and reads them at their last token; a task scored elsewhere cannot be "
            "asked of it. Leave positions=… out."
        )
    return logits
