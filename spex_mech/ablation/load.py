"""A card's model folder, a local path or a hub id → a live model in eval mode. Weights are read from safetensors
only."""

import json
from pathlib import Path
from typing import Any

import torch

from spex_mech.errors import FormatError, ModelError, all_problems


def load_model(what: str | Path, kind: str | None = None, device: str | torch.device | None = None) -> tuple[Any, Any]:
    """Load a model; returns (model, tokenizer or None).

    Args:
        what: a folder (``config.json`` and safetensors), or a Hugging Face hub id.
        kind: "transformer_lens" (HookedTransformer-style names, read into a native TransformerBridge) or "huggingface";
            None: told by the config.
        device: default: CUDA where there is one, else the CPU.

    Raises:
        FormatError: a folder that lacks files, or weights that do not fit the config.
        ModelError: a hub id that cannot be fetched. Remote code is never run.
    """
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = Path(what)
    if not folder.is_dir():
        return _from_hub(str(what), where)
    config = read_config(folder)
    kind = kind or ("transformer_lens" if {"n_layers", "d_model"} <= config.keys() else "huggingface")
    if kind == "transformer_lens":
        return _native_bridge(folder, config).to(where, print_details=False), None
    return _from_pretrained(folder, where)


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model folder; raises `FormatError` if it is missing or not an object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path} cannot be read: {error}.") from error
    if not isinstance(config, dict):
        raise FormatError(f"{path} must hold an object, not {type(config).__name__}.")
    return config


def _native_bridge(folder: Path, config: dict[str, Any]) -> Any:
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources.native import boot
    from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

    weights = _read_weights(folder / "model.safetensors")
    try:
        cfg = TransformerBridgeConfig(**config, architecture="TransformerLensNative", init_weights=False)
        bridge = boot(cfg)
        state = convert_tl_checkpoint(weights, cfg)
    except (TypeError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise FormatError(f"{folder}: config.json does not describe these weights: {error!r}.") from error
    problems = weight_problems({k: tuple(v.shape) for k, v in bridge.state_dict().items()}, state)
    if problems:
        raise FormatError(all_problems(f"{folder}: the weights do not fit the config:", problems))
    bridge.load_state_dict(state, strict=False)
    return bridge.eval()


def weight_problems(wanted: dict[str, tuple[int, ...]], found: dict[str, torch.Tensor]) -> list[str]:
    """What is missing or has another shape (a spare unembedding bias is usual and fine)."""
    missing = [f"{name} is missing" for name in wanted if name not in found]
    unlike = [
        f"{name} has shape {tuple(found[name].shape)}, expected {shape}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    return missing + unlike


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise FormatError(f"{path} cannot be read as safetensors: {error}.") from error


def _from_pretrained(folder: Path, device: str | torch.device) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        has_tokenizer = any((folder / n).exists() for n in ("tokenizer.json", "tokenizer_config.json", "vocab.json"))
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True) if has_tokenizer else None
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise FormatError(f"{folder} is not a Hugging Face model folder that can be loaded: {error}") from error
    return model.to(device).eval(), tokenizer


def _from_hub(name: str, device: str | torch.device) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        model: Any = AutoModelForCausalLM.from_pretrained(name, use_safetensors=True)
        return model.to(device).eval(), AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{name!r} is no folder here, and the hub did not give it ({type(error).__name__}). Check the name; "
            f"without a "
            "connection, copy the model's folder (config.json, model.safetensors, tokenizer files) and give its path."
        ) from error
