"""How people hold a model: compiled, on its way to memory, offloaded, under another default dtype."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from spex_mech.errors import ModelError


def uncompiled(model: Any) -> Any:
    """The module that `torch.compile` was given; anything else as it is."""
    return getattr(model, "_orig_mod", model)


def is_compiled(model: nn.Module) -> bool:
    """Whether some part of a model is compiled, in place or by a wrapper."""
    return any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())


def as_written(compiled: bool) -> AbstractContextManager[Any]:
    """Compiled code runs as it was written inside, so that hooks on its modules act."""
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


@contextmanager
def single_precision() -> Iterator[None]:
    """Tensors made without a dtype are float32 inside, whatever the user has set; also a decorator."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def refuse_absent_weights(module: nn.Module) -> None:
    """Raise `ModelError` where weights are not in memory: never loaded, or offloaded."""
    tensors = dict(module.named_parameters()) | dict(module.named_buffers())
    absent = [name for name, tensor in tensors.items() if tensor.is_meta]
    if not absent:
        return
    named = f"{', '.join(absent[:3])}{' …' if len(absent) > 3 else ''}"
    told = f"{len(absent):,} of {len(tensors):,} weights of {type(module).__name__} are not in memory ({named})"
    if any(hasattr(part, "_hf_hook") for part in module.modules()):
        raise ModelError(
            f"{told}: accelerate offloads them to CPU or disk between passes. Weights must be where they compute, "
            "since every site is tested against them. Load it without offloading (a device_map on which all of it "
            "fits, or a smaller dtype: from_pretrained(…, dtype=torch.bfloat16))."
        )
    raise ModelError(
        f"{told}: the model was made on the meta device and never loaded. Load its weights (from_pretrained without "
        "init_empty_weights) and bind it then."
    )
