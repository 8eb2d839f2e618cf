"""`NNsightSubject`: models wrapped by nnsight, edited in one batched trace. The only import of nnsight.

Only what is read leaves the trace: the logits at the scored positions.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spex_mech.ablation.backends.torch import in_force
from spex_mech.ablation.leave_out import cut_short
from spex_mech.ablation.sites import find_architecture, input_features, possible_shortcuts
from spex_mech.ablation.subject import Edit, Shortcuts, Site
from spex_mech.ablation.weights import describe_hooks, describe_weights, hash_weights
from spex_mech.components import ModelShape


def is_nnsight(model: Any) -> bool:
    """Whether a model is an nnsight wrapper around a torch module."""
    return hasattr(model, "trace") and isinstance(getattr(model, "_module", None), nn.Module)


class NNsightSubject:
    """An `nnsight.NNsight` or `TransformersModel` around a causal language model that is in memory."""

    def __init__(self, model: Any, shortcuts: Shortcuts = Shortcuts()) -> None:
        """Find the sites of the wrapped module; raises `ModelError` where there are none."""
        self.model = model
        self.shortcuts = shortcuts
        inner: nn.Module = model._module.eval()
        self._inner = inner
        self._architecture = find_architecture(inner)
        self._places = {place.site: place for place in self._architecture.places}
        paths = {id(module): name for name, module in inner.named_modules()}
        self._envoys = {site: model.get(paths[id(place.module)]) for site, place in self._places.items()}
        self._provenance = {"backend": "nnsight", "weight_processing": "none", **describe_weights(inner)}

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
        return next(self._inner.parameters()).device

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {
            **self._provenance,
            "weights_sha256": hash_weights(self._inner),
            **describe_hooks(self._inner),
        }  # as they are now: they may have been edited

    def input_weights(self, site: Site) -> Float[Tensor, "feature out"]:
        """The weights that read a head or neuron site, as a writable view."""
        return input_features(self._places[site].module)

    def possible_shortcuts(self) -> Shortcuts:
        """What might be left out in a model of this form; binding tries it."""
        return possible_shortcuts(self._architecture)

    def forward(
        self,
        tokens: Int[Tensor, "row pos"],
        edits: Mapping[Site, Edit],
        positions: Int[Tensor, " row"] | None,
        growth: Mapping[int, Int[Tensor, " row"]] | None = None,
    ) -> Float[Tensor, "row vocab"] | Float[Tensor, "row pos vocab"]:
        """See `Growing.forward`. Sites are visited in forward order, as a trace demands."""
        import nnsight

        placed = [(self._places[s].at, self._envoys[s], edits[s], len(tokens)) for s in self.sites if s in edits]
        wanted, which = (None, None) if positions is None else positions.unique(return_inverse=True)
        options = {} if wanted is None else {"logits_to_keep": wanted.to(tokens.device)}
        cuts = cut_short(self._architecture.passage, self.shortcuts, edits, positions, growth)
        with cuts, torch.inference_mode(), self.model.trace(tokens, use_cache=False, **options):
            for at, envoy, edit, rows in placed:
                if at == "input":
                    envoy.input = _apply(edit, envoy.input, rows)
                else:
                    envoy.output = _apply(edit, envoy.output, rows)
            logits = nnsight.save(self.model.output.logits)
        if which is None:
            return logits
        return logits[torch.arange(len(logits), device=logits.device), which.to(logits.device)]

    @contextmanager
    def in_force(self, edits: Mapping[Site, Edit]) -> Iterator[Any]:
        """The edits in every trace of the wrapper and every call of its module, for the length of a with-block.

        They are plain torch hooks on the module, so a trace may read and edit what it likes besides.
        """
        with in_force(self._architecture.passage.blocks[0], [(self._places[s], edit) for s, edit in edits.items()]):
            yield self.model


def _apply(edit: Edit, x: Any, rows: int) -> Any:
    if isinstance(x, tuple):
        return (_apply(edit, x[0], rows), *x[1:])
    if x.ndim == 3:
        return edit(x)
    return edit(x.unflatten(0, (rows, -1))).flatten(0, 1)
