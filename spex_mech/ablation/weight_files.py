"""Before anything of a model folder is loaded: its weights are plain safetensors inside it, and as large as it says.

Libraries follow what a folder's own files name: an index names files, a config a pickle, kernels of the hub or another
model that an adapter belongs to; and a config of a few digits has memory allocated before any weight is read. So what
is named is looked at here first, and nothing else is opened than what has been looked at.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from spex_mech.errors import FormatError, all_problems
from spex_mech.files.json import read_object

_FEW_LAYERS = 1000  # as many a config may name without having them
_LONGEST = 16_384  # positions of a native bridge, whose blocks hold a table of their square
_PER_BYTE = 8  # parameters that a byte of a file may stand for: one bit each
_SPARE = 1 << 22  # parameters that any config may ask for, whatever the files hold
_TABLES = 1 << 30  # bytes of tables that a model makes of itself, such as causal masks
_HUB_CODE = re.compile(r".*\W.*|(?i:.*(flash|kernel).*)", re.DOTALL)  # a repository, or what falls back to one
_WIDTHS = {"d_model", "d_mlp", "d_head", "d_vocab", "d_vocab_out", "n_heads", "n_key_value_heads", "d_embedding"}


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


def refuse_foreign_files(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises `FormatError` where a model folder names, anywhere, what is no plain safetensors file inside it.

    Links are followed to where the hub's cache keeps its files (``../../blobs``), and nowhere else.
    """
    problems = [f"{path.name} is no plain file of the folder" for path in folder.glob("*.safetensors") if _away(path)]
    for index in sorted(folder.glob("*.index.json")):
        table = read_object(index).get("weight_map")
        names = set(table.values()) if isinstance(table, dict) and all(map(_is_text, table.values())) else {None}
        problems += [p for name in sorted(names, key=str) for p in _problem(folder, name, index.name)]
    if "transformers_weights" in config:
        problems += _problem(folder, config["transformers_weights"], "transformers_weights of config.json")
    problems += [
        f"config.json asks for {key} {value!r:.60}, which is code from the hub"
        for key, value in _settings(config)
        if "implementation" in key and isinstance(value, str) and _HUB_CODE.fullmatch(value)
    ]
    if (folder / "adapter_config.json").exists():
        problems.append("adapter_config.json makes another model, wherever it is, the one that is loaded")
    if problems:
        raise FormatError(
            all_problems(
                f"{folder}: a model folder is read where its weights are plain safetensors files inside it. If you "
                "trust it, load it yourself and give the model to bind. Here",
                problems,
            )
        )


def refuse_giants(folder: Path, config: Mapping[str, Any]) -> None:
    """A few digits of a config may ask for more than memory holds; every layer, and every width, is in the files."""
    sizes = list(_tensors(folder))
    limit, widest = max(_FEW_LAYERS, len(sizes)), max([_FEW_LAYERS, *(size for shape in sizes for size in shape)])
    numbers = [(name, value) for name, value in _settings(config) if isinstance(value, int)]
    problems = [f"{n} is {v:,}" for n, v in numbers if v > limit and ("layer" in n or "expert" in n)]
    if "d_model" in config:  # of TransformerLens
        problems += [
            f"{n} is {v:,}, where no tensor is wider than {widest:,}" for n, v in numbers if n in _WIDTHS and v > widest
        ]
    side = max((value for name, value in numbers if name == "n_ctx"), default=0)
    if side > _LONGEST:
        problems.append(f"n_ctx is {side:,}, where {_LONGEST:,} is what fits")
    if problems:
        raise FormatError(all_problems(f"{folder}: config.json asks for more than its weights can be:", problems))


def refuse_wide(folder: Path) -> None:
    """The same for a Hugging Face folder, by its model without memory (torch's "meta" device): counts, no values."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    held = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    asked = sum(parameter.numel() for parameter in model.parameters())
    tables = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    if asked > _PER_BYTE * held + _SPARE or tables > max(_TABLES, _PER_BYTE * held):
        raise FormatError(
            f"{folder}: config.json asks for more than its weights can be: {asked:,} parameters and {tables:,} bytes "
            f"of tables, where the safetensors files hold {held:,} bytes. The config belongs to other weights."
        )


def _problem(folder: Path, name: Any, where: str) -> list[str]:
    """What is wrong with a weight file that is named somewhere."""
    plain = isinstance(name, str) and name == Path(name).name and name.endswith(".safetensors") and "\\" not in name
    if not plain:
        return [f"{where} names {name!r:.60}"]
    if not (folder / name).is_file():
        return [f"{where} names {name!r:.60}, which is not there"]
    return []


def _away(path: Path) -> bool:
    """Whether a file is anything but a plain one, or a link into the cache it belongs to."""
    home, blobs = path.parent.resolve(), path.parent.resolve().parent.parent / "blobs"
    found = path.resolve()
    return not found.is_file() or found.parent not in (home, blobs)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _tensors(folder: Path) -> Iterator[tuple[int, ...]]:
    """The shapes of all tensors in a folder's files, by their headers."""
    from safetensors import SafetensorError, safe_open

    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "np") as file:
                yield from [tuple(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
        except (OSError, SafetensorError):
            continue  # whoever reads it says why


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of a config, those of its parts too."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _settings(value)
        yield str(name), value
