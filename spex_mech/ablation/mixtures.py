"""Mixtures of experts: what each expert adds to the MLP's output, and what the MLP gives beside its experts.

Libraries compute experts fused, all of a layer in one module that takes tokens, the experts each goes to, and the
router's weights. What one expert adds is had by asking that module once more, of every pair of a token and an expert
alone: their sum is what it gave. Edits are then made where the MLP's output is, by what they change of the sum.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spex_mech.ablation.subject import Edit

Contributions = Float[Tensor, "token expert d_model"]


def experts_of(mlp: nn.Module) -> tuple[nn.Module, int] | None:
    """The module inside an MLP that computes its routed experts, and how many there are; None where it has none."""
    for name, module in mlp.named_modules():
        count = _count(module)
        if name.rsplit(".", 1)[-1] == "experts" and count:
            return module, count
    return None


def router_of(mlp: nn.Module) -> str:
    """What sends tokens to experts, and to how many, for people; empty where it is not known."""
    found = list[tuple[str, bool]]()
    for module in mlp.modules():
        top = next(
            (n for n in (getattr(module, k, None) for k in ("top_k", "num_experts_per_tok")) if type(n) is int), 0
        )
        if top and (module is not mlp or not found):
            found.append((f"top {top} by {type(module).__name__}", module is mlp))
    return next((told for told, whole in found if not whole), found[0][0] if found else "")


def contributions(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor, count: int
) -> Contributions:
    """What each expert adds for every token, from one call of the module that computes them all.

    Raises `ValueError`: a module that takes neither tokens already sorted by expert, nor tokens, the experts each goes
    to, and weights.
    """
    given = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
    d_model = output.shape[-1]
    if len(given) == 1 and given[0].shape[0] % count == 0:  # each expert's tokens, one expert after the other
        return output.reshape(count, -1, d_model).transpose(0, 1)
    index = next((value for value in given if not value.is_floating_point()), None)
    weights = next((v for v in given[1:] if index is not None and v is not index and v.shape == index.shape), None)
    if len(given) != 3 or index is None or weights is None or given[0].shape[-1] != d_model:
        raise ValueError(f"its experts ({type(module).__name__}) take {_shapes(given)}")
    k, tokens = index.shape[-1], output.numel() // d_model
    names = iter([given[0].reshape(tokens, d_model).repeat_interleave(k, 0), *(v.reshape(-1, 1) for v in given[1:])])
    slots = module.forward(
        *(next(names) if isinstance(value, Tensor) else value for value in args),
        **{name: next(names) if isinstance(value, Tensor) else value for name, value in kwargs.items()},
    ).reshape(tokens, k, d_model)
    found = slots.new_zeros(tokens, count + 1, d_model)  # the last for what is no expert of its own
    where = index.reshape(tokens, k, 1).clamp(max=count).expand(-1, -1, d_model)
    return found.scatter_add_(1, where, slots)[:, :count]


@dataclass(eq=False)
class ExpertsForm:
    """The site ``[row, pos, expert · d_model]`` of a layer's experts; the MLP's output has `scale` times their sum."""

    mlp: nn.Module
    experts: nn.Module
    count: int
    scale: float = 1.0
    _seen: threading.local = field(default_factory=threading.local, repr=False)

    def hang(self, edit: Edit, rows: Callable[[], int], guard: Callable[..., Any]) -> list[Any]:
        """See `sites.Form`."""

        def note(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            self._seen.parts = contributions(module, args, kwargs, output, self.count)

        def act(_module: nn.Module, _args: Any, output: Any) -> Any:
            parts = self._seen.parts * self.scale if self.scale != 1.0 else self._seen.parts
            return on_first(output, lambda out: _moved(out, parts.flatten(1), edit, rows, self.count))

        return [
            self.experts.register_forward_hook(guard(note), with_kwargs=True),
            self.mlp.register_forward_hook(guard(act)),
        ]


@dataclass(eq=False)
class SharedForm:
    """The site ``[row, pos, d_model]`` of what an MLP gives beside its experts."""

    mlp: nn.Module
    experts: nn.Module
    scale: float = 1.0
    _seen: threading.local = field(default_factory=threading.local, repr=False)

    def hang(self, edit: Edit, rows: Callable[[], int], guard: Callable[..., Any]) -> list[Any]:
        """See `sites.Form`. It must be hung before edits of the experts, which change the MLP's output."""

        def note(_module: nn.Module, _args: Any, output: Tensor) -> None:
            self._seen.routed = output

        def act(_module: nn.Module, _args: Any, output: Any) -> Any:
            return on_first(output, lambda out: _moved(out, self._rest(out), edit, rows, 1))

        return [
            self.experts.register_forward_hook(guard(note)),
            self.mlp.register_forward_hook(guard(act)),
        ]

    def _rest(self, out: Tensor) -> Float[Tensor, "token d_model"]:
        flat = out.reshape(-1, out.shape[-1])
        return flat - self.scale * summed_experts(self._seen.routed, flat)


@dataclass(eq=False)
class SumForm:
    """The site ``[row, pos, d_model]`` of an MLP that is the sum of two modules of a block, the second called later."""

    first: nn.Module
    second: nn.Module
    _seen: threading.local = field(default_factory=threading.local, repr=False)

    def hang(self, edit: Edit, rows: Callable[[], int], guard: Callable[..., Any]) -> list[Any]:
        """See `sites.Form`."""

        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            self._seen.first = output[0] if isinstance(output, tuple) else output

        def act(_module: nn.Module, _args: Any, output: Any) -> Any:
            first = getattr(self._seen, "first", None)
            if first is None:  # called in another order: the certificate will not hold
                return None
            self._seen.first = None
            return on_first(output, lambda out: _moved(out, (out + first).reshape(-1, out.shape[-1]), edit, rows, 1))

        return [self.first.register_forward_hook(guard(note)), self.second.register_forward_hook(guard(act))]


def summed_experts(output: Tensor, like: Float[Tensor, "token d_model"]) -> Float[Tensor, "token d_model"]:
    """What all experts give together, also where their module gives them one after the other."""
    return output.reshape(-1, *like.shape).sum(0) if output.numel() > like.numel() else output.reshape(like.shape)


def on_first(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """What a module gave, its first tensor changed."""
    return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)


def _moved(
    out: Tensor, parts: Float[Tensor, "token feature"], edit: Edit, rows: Callable[[], int], count: int
) -> Float[Tensor, "..."]:
    """An output by as much further as the edit changes the sum of its parts; the same to the bit where it does not."""
    length = out.shape[1] if out.ndim == 3 else len(out) // rows()
    x = parts.reshape(len(parts) // length, length, -1)
    after = edit(x)
    by = torch.where(after == x, torch.zeros_like(after), after - x)  # infinite parts that stay are no NaN
    by = by.unflatten(2, (count, -1)).sum(2)
    return out + by if out.ndim == 3 else out + by.flatten(0, 1)


def _count(module: nn.Module) -> int:
    """How many experts a module says that it computes."""
    for name in ("num_routed_experts", "num_experts", "n_routed_experts", "num_local_experts"):
        with suppress(AttributeError):
            if type(count := getattr(module, name)) is int and count > 0:
                return count
    shapes = [len(p) for p in module.parameters(recurse=False) if p.ndim == 3]
    return shapes[0] if shapes else 0


def _shapes(given: list[Tensor]) -> str:
    return ", ".join(str(tuple(value.shape)) for value in given) or "no tensor"
