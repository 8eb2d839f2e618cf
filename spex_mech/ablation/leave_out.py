"""Hooks that leave out work which cannot reach a result: plain torch hooks, the same for every backend."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from spex_mech.ablation.edits import RowEdit
from spex_mech.ablation.subject import Edit, Shortcuts, Site, common_position
from spex_mech.ablation.turns import only_here


@dataclass(frozen=True)
class LeaveOut:
    """The modules at which a forward pass can be cut short.

    Attributes:
        blocks: the decoder blocks; each takes the residual stream ``[row, pos, d_model]`` first.
        mlps: by layer, the module that reads the MLP's input, where the whole MLP is one module.
        ends: modules of the last block after which positions no longer mix: the attention's output projection, the MLP.
        final: the unembedding, where it cannot be told otherwise which positions are read.
    """

    blocks: tuple[nn.Module, ...]
    mlps: Mapping[int, nn.Module]
    ends: tuple[nn.Module, ...]
    final: nn.Module | None = None


@contextmanager
def cut_short(
    where: LeaveOut,
    shortcuts: Shortcuts,
    edits: Mapping[Site, Edit],
    positions: Int[Tensor, " row"] | None,
    growth: Mapping[int, Int[Tensor, " row"]] | None,
) -> Iterator[None]:
    """The shortcuts in force for the length of a with-block. Enter it after the edits' hooks are in place.

    Positions left out hold values that are meaningless, finite, and never read: the residual stream broadcasts.
    """
    handles: list[Any] = []
    device = next(where.blocks[0].parameters()).device
    try:
        for layer, rows in (growth or {}).items():
            hook = _take_rows(rows.to(device))
            handles.append(where.blocks[layer].register_forward_pre_hook(only_here(hook), with_kwargs=True))
        position = common_position(positions)
        if position is not None and shortcuts.narrow:
            take = only_here(_take_position(position))
            handles += [m.register_forward_pre_hook(take, with_kwargs=True) for m in where.ends]
        for layer, edit in whole_rows(edits).items() if shortcuts.skip else ():
            if layer in where.mlps and len(edit.inputs) < len(edit.kept):
                hook = _take_rows(edit.inputs.to(device), of=len(edit.kept))
                handles.append(where.mlps[layer].register_forward_pre_hook(only_here(hook), with_kwargs=True))
        if positions is not None and shortcuts.last and where.final is not None:
            scored = only_here(_take_scored(positions))
            handles.append(where.final.register_forward_pre_hook(scored, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def whole_rows(edits: Mapping[Site, Edit]) -> dict[int, RowEdit]:
    """The layers whose MLP is kept or replaced whole in each row, and no part of which has an edit of its own."""
    inner = {site.layer for site in edits if site.kind in ("neurons", "experts", "shared")}
    return {
        site.layer: edit
        for site, edit in edits.items()
        if site.kind == "mlp" and site.layer not in inner and isinstance(edit, RowEdit)
    }


def changed_input(args: tuple[Any, ...], kwargs: dict[str, Any], change: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a module with its first tensor changed, however it was passed."""
    if args:
        return (change(args[0]), *args[1:]), kwargs
    name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
    return args, {**kwargs, name: change(kwargs[name])}


def _take_rows(rows: Int[Tensor, " row"], of: int | None = None) -> Any:
    """Take some rows; with `of`, only where the module sees that many (not one row for all, nor flattened rows)."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def change(x: Tensor) -> Tensor:
            fits = of is None or (x.ndim == 3 and len(x) == of)
            return x.index_select(0, rows) if fits else x

        return changed_input(args, kwargs, change)

    return hook


def _take_position(position: int) -> Any:
    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return changed_input(args, kwargs, lambda x: x[:, position : position + 1])

    return hook


def _take_scored(positions: Int[Tensor, " row"]) -> Any:
    """Of ``[row, pos, d_model]``, the scored position of each row, as ``[row, 1, d_model]``."""
    position = common_position(positions)

    def change(x: Tensor) -> Tensor:
        if position is not None:
            return x[:, position : position + 1]
        return x[torch.arange(len(x), device=x.device), positions.to(x.device)][:, None]

    return lambda _module, args, kwargs: changed_input(args, kwargs, change)
