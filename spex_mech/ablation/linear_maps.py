"""Linear maps in whatever form people hold them: plain, as GPT-2's Conv1D, quantised, with an adapter around."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

_IN, _OUT = ("in_features", "infeatures"), ("out_features", "outfeatures")


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear map, or an adapter around one.

    A quantised one is known by the widths that it declares; its weights may have any form.
    """
    base = getattr(module, "base_layer", None)
    if isinstance(base, nn.Module):
        return is_linear(base)
    return not isinstance(module, nn.Bilinear) and widths(module) is not None


def widths(module: nn.Module) -> tuple[int, int] | None:
    """Features in and out of a linear map, as it declares them; None for other modules.

    >>> widths(nn.Linear(48, 32)), widths(nn.ReLU())
    ((48, 32), None)
    """
    base = getattr(module, "base_layer", None)
    if isinstance(base, nn.Module):
        return widths(base)
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and isinstance(weight, Tensor):
        return int(weight.shape[0]), int(weight.shape[1])
    found = [next((n for name in names if type(n := getattr(module, name, None)) is int), 0) for names in (_IN, _OUT)]
    return (found[0], found[1]) if all(found) else None


def linears(module: nn.Module, own: bool = False) -> Iterator[tuple[str, nn.Module]]:
    """The linear maps inside a module by their own names; an adapter around one is that one, not what it is made of.

    `own`: direct children only.
    """
    for name, child in module.named_children():
        if is_linear(child):
            yield name, child
        elif not own:
            yield from linears(child, own)


def reading_weights(projection: nn.Module) -> list[Float[Tensor, "feature out"]]:
    """All that reads a projection's input: its weights first, then those of adapters (LoRA's A) around it; views.

    Empty where weights are packed, so that no feature of the input has rows of its own, and under adapters that do more
    than add a product of matrices (DoRA norms the weights, OFT turns the input).
    """
    base = getattr(projection, "base_layer", None)
    if not isinstance(base, nn.Module):
        weight = getattr(projection, "weight", None)
        if not _is_plain(weight, widths(projection)):
            return []
        assert isinstance(weight, Tensor)
        return [weight if type(projection).__name__ == "Conv1D" else weight.T]
    own = reading_weights(base)
    if not own or not hasattr(projection, "lora_A") or len(getattr(projection, "lora_magnitude_vector", ())):
        return []
    beside = [m.weight.T for m in projection.modules() if isinstance(m, nn.Linear) and m is not base]
    return [*own, *(weight for weight in beside if weight.shape[0] == own[0].shape[0])]


def _is_plain(weight: object, declared: tuple[int, int] | None) -> bool:
    """Whether a weight is a matrix of floats, not packed numbers or a tensor type of some library."""
    if not isinstance(weight, Tensor) or type(weight.data) is not torch.Tensor or not weight.is_floating_point():
        return False
    return declared is not None and sorted(weight.shape) == sorted(declared) and weight.element_size() > 1
