"""`Responses`: what the forward passes cost and gave. Saved before anything is decoded."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from spex_mech.components import ComponentSet
from spex_mech.errors import FormatError, ResponseError, SpexMechError, printable
from spex_mech.files.plain_files import read_plain, replace_file
from spex_mech.files.text import counted, some_of
from spex_mech.walsh.decoding import Samples

RESPONSES_SCHEMA = "spex_mech.responses/1"
MOST_PROMPTS = 1 << 24  # of a file; more are a slip, or meant to fill the memory
_SHORT = 1 << 15  # prompts whose numbers fit in 16 bits
MAX_HEADER = 1 << 26  # bytes of metadata; 36,864 names are under one MiB


@dataclass(frozen=True)
class Responses:
    """Row m of `values` is the metric of every prompt under row m of `keep` (True: untouched).

    Where a mask met only some of the prompts, `met` says which: column s of row m is of prompt ``met[m, s]``, one of
    `prompts`. Only what was measured is there, so a table of all prompts has to be put together by `met`.

    The file is plain safetensors; without this package it is read by:

    ```python
    with safetensors.safe_open(path, "np") as f:
        meta, packed, values = f.metadata(), f.get_tensor("keep"), f.get_tensor("values")
    names = json.loads(meta["components"])
    keep = np.unpackbits(packed, axis=1, bitorder="little")[:, : len(names)].astype(bool)
    met = f.get_tensor("met") if "met" in f.keys() else None  # prompt numbers, beside values; None: all, in order
    ```
    """

    components: ComponentSet
    keep: Bool[Tensor, "mask component"]
    values: Float[Tensor, "mask slot"]
    unit: str
    provenance: Mapping[str, Any] = field(default_factory=dict)
    met: Int[Tensor, "mask slot"] | None = None
    prompts: int = 0

    def __post_init__(self) -> None:
        masks, n = (self.keep.shape[0], len(self.components)) if self.keep.ndim == 2 else (-1, 0)
        if self.keep.shape != (masks, n) or self.values.ndim != 2 or self.values.shape[0] != masks or not masks:
            raise ResponseError(
                f"keep {tuple(self.keep.shape)} and values {tuple(self.values.shape)} do not fit {n:,} components: "
                "they must be [mask, component] and [mask, prompt] with as many masks, at least one."
            )
        if self.keep.dtype != torch.bool:
            raise ResponseError(f"keep must be Boolean (True: untouched), not {self.keep.dtype}.")
        refuse_non_finite(self.components, self.keep, self.values)
        if self.met is None:
            object.__setattr__(self, "prompts", self.values.shape[1])
        else:
            self._check_met(self.met)

    def _check_met(self, met: Tensor) -> None:
        """Whether every mask met different prompts that there are."""
        whole = met.shape == self.values.shape and met.dtype == torch.long and met.numel() > 0
        ordered = met.sort(1).values if whole else met
        if not whole or ordered.min() < 0 or ordered.max() >= self.prompts or (ordered.diff(dim=1) == 0).any():
            raise ResponseError(
                f"met {tuple(met.shape)} must say of each of the values {tuple(self.values.shape)} which of "
                f"{self.prompts:,} prompts it is of, by numbers from 0, different ones in a row."
            )

    @property
    def samples(self) -> Samples:
        """What a decoder takes; without the design."""
        return Samples(self.keep, self.values, None, self.met, self.prompts)

    @property
    def mean(self) -> Float[Tensor, " mask"]:
        """The headline: the mean over prompts, float64; of masks that met some only, `Samples.mean_values`."""
        return self.values.double().mean(1) if self.met is None else self.samples.mean_values

    @property
    def extent(self) -> str:
        """How many masks met how many prompts, in words."""
        return f"{counted(len(self), 'mask')} × {some_of(self.values.shape[1], self.prompts, 'prompt')}"

    def __len__(self) -> int:
        return self.keep.shape[0]

    def __str__(self) -> str:
        """One line: masks, prompts, components, and what the headline ran over."""
        mean = self.mean
        return (
            f"Responses: {self.extent} of "
            f"{counted(len(self.components), 'component')}, "
            f"{float(self.keep.double().mean()):.0%} kept; mean over prompts {float(mean.min()):+.3g} to "
            f"{float(mean.max()):+.3g} {printable(self.unit)}"
        )

    __repr__ = __str__

    def take(self, rows: Int[Tensor, " row"]) -> "Responses":
        """Some of the masks."""
        met = None if self.met is None else self.met[rows]
        return replace(self, keep=self.keep[rows], values=self.values[rows], met=met)

    def frame(self) -> pd.DataFrame:
        """One row a mask: the ablated components, their number, the mean and the spread over prompts.

        Of masks that met some prompts only, which (``"prompts"``), and the spread over them (NaN of one), what a prompt
        has beside the others in the mean over its masks taken out.
        """
        ablated = [tuple(self.components.names[i] for i in (~row).nonzero()[:, 0].tolist()) for row in self.keep]
        values, told = self.values.double(), {"ablated": ablated, "count": [len(a) for a in ablated], "mean": self.mean}
        if self.met is None:
            return pd.DataFrame(told | {"std": values.std(1, correction=0)})
        apart = values - self.samples.output_means[self.met]
        spread = apart.std(1, correction=0) if values.shape[1] > 1 else torch.full((len(self),), torch.nan)
        return pd.DataFrame(told | {"std": spread, "prompts": list(map(tuple, self.met.tolist()))})

    def save(self, path: str | Path) -> None:
        """Write the file whole or not at all (temporary file, flushed to disk, renamed)."""
        from safetensors.torch import save

        metadata = {
            "schema": RESPONSES_SCHEMA,
            "components": json.dumps(list(self.components.names)),
            "unit": self.unit,
            "provenance": json.dumps(self.provenance, sort_keys=True, default=str),
        }
        tensors = {"keep": pack_bits(self.keep.cpu()), "values": self.values.cpu().float().contiguous()}
        if self.met is not None:
            metadata["prompts"] = str(self.prompts)
            tensors["met"] = self.met.cpu().to(torch.int16 if self.prompts <= _SHORT else torch.int32).contiguous()
        try:
            replace_file(Path(path), _in_order(save(tensors, metadata)))
        except OSError as error:
            raise FormatError(
                f"{path} cannot be written: {error}. Make room or choose another folder, then run again."
            ) from error

    @classmethod
    def load(cls, path: str | Path) -> "Responses":
        """Read responses; raises one `FormatError` on anything that is not whole and of this schema."""
        metadata, tensors = _read(Path(path))
        try:
            names = json.loads(metadata["components"])
            provenance = json.loads(metadata["provenance"])
            packed, values = tensors["keep"], tensors["values"]
            if packed.dtype != torch.uint8 or packed.ndim != 2 or packed.shape[1] != -(-len(names) // 8):
                raise FormatError(f"{path}: keep {packed.dtype} {tuple(packed.shape)} does not fit {len(names)} names.")
            components, keep = ComponentSet.of(names), unpack_bits(packed, len(names))
            met, prompts = _met_of(tensors.get("met"), metadata)
            return cls(components, keep, values.float(), metadata["unit"], provenance, met, prompts)
        except SpexMechError as error:
            raise FormatError(f"{path} is damaged: {error}") from error
        except (KeyError, TypeError, ValueError, RecursionError, AttributeError) as error:
            raise FormatError(f"{path} is not a responses file: {error!r}.") from error


def refuse_non_finite(components: ComponentSet, keep: Tensor, values: Tensor, offset: int = 0) -> None:
    """Raise `ResponseError` naming the first mask with a value that is NaN or infinite; row 0 is mask `offset`."""
    bad = (~values.isfinite()).any(1).nonzero()[:, 0]
    if not len(bad):
        return
    first = int(bad[0])
    ablated = (~keep[first]).nonzero()[:, 0].tolist()
    named = ", ".join(components.names[i] for i in ablated[:5]) or "none"
    raise ResponseError(
        f"the metric is not finite for {len(bad):,} of {len(values):,} masks, first mask {offset + first:,} "
        f"({len(ablated):,} components ablated, among them {named}). Use another metric or replacement."
    )


def pack_bits(keep: Bool[Tensor, "mask component"]) -> UInt8[Tensor, "mask byte"]:
    """Bits packed along the component axis, little-endian: bit i of the row is bit i % 8 of byte i // 8.

    >>> pack_bits(torch.tensor([[True, False, True]])).tolist()
    [[5]]
    """
    padded = torch.nn.functional.pad(keep, (0, -keep.shape[1] % 8)).reshape(len(keep), -1, 8)
    return (padded.to(torch.uint8) << torch.arange(8, dtype=torch.uint8)).sum(2, dtype=torch.uint8)


def unpack_bits(packed: UInt8[Tensor, "mask byte"], n: int) -> Bool[Tensor, "mask component"]:
    """The inverse of `pack_bits` for n components."""
    bits = (packed[:, :, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.bool().flatten(1)[:, :n]


def _met_of(packed: Tensor | None, metadata: Mapping[str, str]) -> tuple[Int[Tensor, "mask slot"] | None, int]:
    """Which prompts masks met, and of how many, by a file."""
    if packed is None:
        return None, 0
    prompts = int(metadata["prompts"])
    if packed.dtype not in (torch.int16, torch.int32) or packed.ndim != 2 or not 0 < prompts <= MOST_PROMPTS:
        raise FormatError(f"met {packed.dtype} {tuple(packed.shape)} does not say which of {prompts:,} prompts.")
    return packed.long(), prompts


def _in_order(data: bytes) -> bytes:
    """A safetensors file with its header in alphabetical order; the library's order differs from call to call."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.dumps(json.loads(data[8 : 8 + length]), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    text = header.encode()
    text += b" " * (-len(text) % 8)  # what follows stays aligned
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        (header,) = struct.unpack("<Q", read_plain(path, 7))
        if header > MAX_HEADER:
            raise FormatError(f"{path} claims {header:,} bytes of metadata; it is not a responses file.")
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            if metadata.get("schema") != RESPONSES_SCHEMA:
                raise FormatError(
                    f"{path} has schema {metadata.get('schema')!r}; this version reads {RESPONSES_SCHEMA!r}."
                )
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, struct.error, UnicodeDecodeError) as error:
        raise FormatError(f"{path} cannot be read as responses: {error}.") from error
