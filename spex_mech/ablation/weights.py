"""What a record says of a model's weights: a hash over all of them, dtype, and versions."""

import hashlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn


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
        if isinstance(tensor, torch.Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes() if flat.numel() else b"")
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
