"""A card's model folder, a local path or a hub id → a live model in eval mode. Weights are read from safetensors
only."""

from pathlib import Path
from typing import Any

import torch

from spex_mech.ablation.weight_files import read_config, refuse_foreign_files, refuse_giants, refuse_wide
from spex_mech.errors import FormatError, ModelError, SpexMechError, all_problems
from spex_mech.progress import undisturbed

_PATIENCE = 10  # seconds for the hub to answer
_SPARE = ("b_U", "mask", "IGNORE")  # of checkpoints: of an unembedding without bias, and buffers of older versions


def load_model(what: str | Path, kind: str | None = None, device: str | torch.device | None = None) -> tuple[Any, Any]:
    """Load a model; returns (model, tokenizer or None).

    Args:
        what: a folder (``config.json`` and safetensors), or a Hugging Face hub id.
        kind: "transformer_lens" (HookedTransformer-style names, read into a native TransformerBridge) or "huggingface";
            None: told by the config.
        device: default: CUDA where there is one, else the CPU.

    Raises:
        FormatError: a folder that lacks files, weights that do not fit the config, or a model with code of its own,
            which is never run: a user who trusts it loads it and gives it to `bind`.
        ModelError: a hub id that cannot be fetched.
    """
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    every = list(range(torch.cuda.device_count()))
    with undisturbed(), torch.random.fork_rng(every):  # modules draw weights before they are given theirs
        return _load(what, kind, where)


def _load(what: str | Path, kind: str | None, where: str | torch.device) -> tuple[Any, Any]:
    folder = Path(what)
    if not folder.is_dir():
        return _from_hub(str(what), where)
    config = read_config(folder)
    refuse_foreign_files(folder, config)
    refuse_giants(folder, config)
    kind = kind or ("transformer_lens" if {"n_layers", "d_model"} <= config.keys() else "huggingface")
    if kind == "transformer_lens":
        return _native_bridge(folder, config).to(where, print_details=False), None
    return _from_pretrained(folder, where)


def _native_bridge(folder: Path, config: dict[str, Any]) -> Any:
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources.native import boot
    from transformer_lens.utilities.tl_checkpoint_conversion import convert_tl_checkpoint

    weights = _read_weights(folder / "model.safetensors")
    try:
        named = {"model_name": folder.parent.name if folder.name == "model" else folder.name, **config}
        cfg = TransformerBridgeConfig(**named, architecture="TransformerLensNative", init_weights=False)
        bridge = boot(cfg)
        state = convert_tl_checkpoint(weights, cfg)
    except Exception as error:  # what TransformerLens raises over a damaged config may be anything
        raise FormatError(f"{folder}: config.json does not describe these weights: {error!r}.") from error
    problems = weight_problems({k: tuple(v.shape) for k, v in bridge.state_dict().items()}, state)
    if problems:
        raise FormatError(all_problems(f"{folder}: the weights do not fit the config:", problems))
    bridge.load_state_dict(state, strict=False)
    return bridge.eval()


def weight_problems(wanted: dict[str, tuple[int, ...]], found: dict[str, torch.Tensor]) -> list[str]:
    """What is missing, has another shape, or has no place (a spare unembedding bias and masks are usual and fine)."""
    missing = [f"{name} is missing" for name in wanted if name not in found]
    unlike = [
        f"{name} has shape {tuple(found[name].shape)}, expected {shape}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name].shape) != shape
    ]
    spare = [name for name in found if name not in wanted and name.rpartition(".")[2] not in _SPARE]
    return missing + unlike + [f"{name} has no place in it" for name in spare]


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise FormatError(f"{path} cannot be read as safetensors: {error}.") from error


def _from_pretrained(folder: Path, device: str | torch.device) -> tuple[Any, Any]:
    has_tokenizer = any((folder / n).exists() for n in ("tokenizer.json", "tokenizer_config.json", "vocab.json"))
    try:
        return _fetch(folder, device, has_tokenizer, local_files_only=True)
    except SpexMechError:
        raise
    except Exception as error:  # what transformers and tokenizers raise over a damaged folder may be anything
        raise FormatError(f"{folder} is not a Hugging Face model folder that can be loaded: {error}") from error


def _from_hub(name: str, device: str | torch.device) -> tuple[Any, Any]:
    try:
        _ask_hub(name)
        return _fetch(name, device, has_tokenizer=True)
    except SpexMechError:
        raise
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{name!r} is no folder here, and the hub did not give it ({type(error).__name__}). Check the name; "
            f"without a "
            "connection, copy the model's folder (config.json, model.safetensors, tokenizer files) and give its path."
        ) from error


def _ask_hub(name: str) -> None:
    """Whether the hub answers at all; raises `ConnectionError` at once where the fetch would try for half a minute."""
    from huggingface_hub import HfApi, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return  # fetched before: no connection is needed
    try:
        HfApi().model_info(name, timeout=_PATIENCE)
    except (OSError, ValueError):
        return  # it answered, or must not be asked: the fetch says what is wrong
    except Exception as error:  # what the hub's client raises of the network is its own
        raise ConnectionError(str(error)) from error


def _fetch(what: str | Path, device: str | torch.device, has_tokenizer: bool, **options: Any) -> tuple[Any, Any]:
    """Model and tokenizer by transformers, with no code but its own, and no weight that is not in the files."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any
    told: Any
    options["trust_remote_code"] = False  # else it asks, and a stranger's code is one keystroke away
    try:
        if isinstance(what, Path):
            refuse_wide(what)
        model, told = AutoModelForCausalLM.from_pretrained(
            what, use_safetensors=True, output_loading_info=True, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(what, **options) if has_tokenizer else None
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise FormatError(
            f"{str(what)!r} comes with code of its own, which is never run from here. If you trust it, load it "
            "yourself with transformers, its code allowed, and give the model to bind."
        ) from error
    absent = sorted(map(str, told["missing_keys"]))
    if absent:
        raise FormatError(all_problems(f"{what}: the files lack weights that the config asks for:", absent))
    return model.to(device).eval(), tokenizer
