"""What a record says of a model as it is now: a hash over its weights, dtype, versions, and hooks left on it."""

import hashlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
import torch.nn.modules.module as module_globals
from torch import nn

_LIBRARIES = ("transformer_lens", "transformers", "nnsight", "accelerate", "torch")


def describe_weights(model: nn.Module) -> dict[str, Any]:
    """Class, number of parameters, dtype, attention implementation, and library versions."""
    config = getattr(model, "config", None)
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
    return {
        "model": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": "/".join(dtypes),
        "attention": str(getattr(config, "_attn_implementation", None)),
        "versions": {name: _version(name) for name in ("torch", "transformers", "transformer-lens", "nnsight")},
    }


def hash_weights(model: nn.Module) -> str:
    """sha256 over the names, shapes and bytes of all parameters and buffers, one tensor at a time."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        _add(digest, name, tensor)
    return digest.hexdigest()


def _add(digest: Any, name: str, value: Any) -> None:
    """Hash one entry of a state: a tensor, a packed or quantised one by what it is made of, or a tuple of such."""
    if isinstance(value, tuple | list):
        for i, item in enumerate(value):
            _add(digest, f"{name}.{i}", item)
    if not isinstance(value, torch.Tensor):
        return
    if type(value.data) is not torch.Tensor and hasattr(value.data, "__tensor_flatten__"):  # torchao's
        for part in value.data.__tensor_flatten__()[0]:
            _add(digest, f"{name}.{part}", getattr(value.data, part))
        return
    if value.is_quantized:
        value = value.dequantize()
    digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
    flat = value.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")


def describe_hooks(model: nn.Module) -> dict[str, list[str]]:
    """``{"hooks": names}`` of the modules on which somebody left a forward hook that acts in every pass; else ``{}``.

    Hooks that libraries need for their own work do not count; one of this package does, since it ablates something.
    """
    found = (
        ["(every module)"] if module_globals._global_forward_hooks or module_globals._global_forward_pre_hooks else []
    )
    found += [name or "(the model)" for name, module in model.named_modules() if _hooked(module)]
    return {"hooks": found} if found else {}


def _hooked(module: nn.Module) -> bool:
    if hasattr(module, "fwd_hooks"):  # a hook point of TransformerLens wraps the user's function in its own
        return bool(module.fwd_hooks)
    hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return any(str(getattr(hook, "__module__", "")).split(".")[0] not in _LIBRARIES for hook in hooks)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
