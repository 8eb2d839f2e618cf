"""`TorchSubject`: Hugging Face style causal language models through plain torch hooks. The reference backend."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from spex_mech.ablation.leave_out import cut_short
from spex_mech.ablation.sites import Place, find_architecture, input_features, possible_shortcuts
from spex_mech.ablation.subject import Edit, Shortcuts, Site
from spex_mech.ablation.weights import describe_hooks, describe_weights, hash_weights
from spex_mech.components import ModelShape

# the same function written as eight passes over memory; torch has it as one
_SLOW_GELU = ("NewGELUActivation", "FastGELUActivation")


class TorchSubject:
    """A causal language model in eval mode; keeps its attention implementation (SDPA, flash)."""

    def __init__(self, model: nn.Module, shortcuts: Shortcuts = Shortcuts()) -> None:
        """Find the sites of `model`; raises `ModelError` where there are none."""
        self.model = model.eval()
        self.shortcuts = shortcuts
        self._architecture = find_architecture(model)
        self._places = {place.site: place for place in self._architecture.places}
        self._activations = [m for m in model.modules() if type(m).__name__ in _SLOW_GELU]
        self._provenance = {"backend": "torch", "weight_processing": "none", **describe_weights(model)}

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
        return next(self.model.parameters()).device

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {
            **self._provenance,
            "weights_sha256": hash_weights(self.model),
            **describe_hooks(self.model),
        }  # as they are now: they may have been edited

    def possible_shortcuts(self) -> Shortcuts:
        """What might be left out in a model of this form; binding tries it."""
        return possible_shortcuts(self._architecture)

    def input_weights(self, site: Site) -> Float[Tensor, "feature out"]:
        """The weights that read a head or neuron site, as a writable view."""
        return input_features(self._places[site].module)

    def forward(
        self,
        tokens: Int[Tensor, "row pos"],
        edits: Mapping[Site, Edit],
        positions: Int[Tensor, " row"] | None,
        growth: Mapping[int, Int[Tensor, " row"]] | None = None,
    ) -> Float[Tensor, "row vocab"] | Float[Tensor, "row pos vocab"]:
        """See `Growing.forward`; only the scored positions are unembedded."""
        placed = [(self._places[site], edit) for site, edit in edits.items()]
        cuts = cut_short(self._architecture.passage, self.shortcuts, edits, positions, growth)
        with torch.inference_mode(), fused(self._activations), hooked(placed, lambda: len(tokens)), cuts:
            if positions is None:
                return self.model(input_ids=tokens, use_cache=False).logits
            wanted, which = positions.unique(return_inverse=True)
            logits = self.model(input_ids=tokens, use_cache=False, logits_to_keep=wanted.to(tokens.device)).logits
            rows = torch.arange(len(logits), device=logits.device)
            return logits[rows, which.to(logits.device)]

    @contextmanager
    def in_force(self, edits: Mapping[Site, Edit]) -> Iterator[nn.Module]:
        """The edits in every forward pass of the model itself, whoever calls it, for the length of a with-block."""
        with in_force(self._architecture.passage.blocks[0], [(self._places[s], edit) for s, edit in edits.items()]):
            yield self.model


@contextmanager
def in_force(first: nn.Module, edits: list[tuple[Place, Edit]]) -> Iterator[None]:
    """Edits in force for the length of a with-block, for batches of any size; `first` is the first decoder block."""
    rows = 0

    def watch(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal rows
        rows = len(args[0] if args else next(v for v in kwargs.values() if isinstance(v, Tensor)))

    handle = first.register_forward_pre_hook(watch, with_kwargs=True)
    try:
        with hooked(edits, lambda: rows):
            yield
    finally:
        handle.remove()


@contextmanager
def hooked(edits: list[tuple[Place, Edit]], rows: Callable[[], int]) -> Iterator[None]:
    """Edits in force for the length of a with-block; `rows` says, while the model runs, how many rows it has."""
    handles: list[Any] = []
    try:
        for place, edit in edits:
            whole = _per_row(edit, rows)
            if place.at == "input":
                handles.append(place.module.register_forward_pre_hook(_on_input(whole)))
            else:
                handles.append(place.module.register_forward_hook(_on_output(whole)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def fused(activations: list[nn.Module]) -> Iterator[None]:
    """torch's one-pass tanh GELU in place of the same formula written out, for the length of a with-block.

    A module whose `forward` somebody else has replaced (nnsight does) is left alone.
    """
    free = [module for module in activations if "forward" not in vars(module)]
    try:
        for module in free:
            module.forward = _gelu  # an instance attribute hides the class's method
        yield
    finally:
        for module in free:
            del module.forward


def _gelu(x: Tensor) -> Tensor:
    return nn.functional.gelu(x, approximate="tanh")


def _per_row(edit: Edit, rows: Callable[[], int]) -> Edit:
    """An edit that also serves modules which see rows and positions flattened into one axis (OPT does)."""

    def whole(x: Tensor) -> Tensor:
        if x.ndim == 3:
            return edit(x)
        return rearrange(edit(rearrange(x, "(row pos) f -> row pos f", row=rows())), "row pos f -> (row pos) f")

    return whole


def _on_input(edit: Edit) -> Callable[..., Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (edit(args[0]), *args[1:])

    return hook


def _on_output(edit: Edit) -> Callable[..., Any]:
    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, tuple):  # mixtures of experts return their router's logits too
            return (edit(output[0]), *output[1:])
        return edit(output)

    return hook
