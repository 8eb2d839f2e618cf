"""`ModelShape`: what a model has to ablate, the counts that component names are checked against."""

from dataclasses import dataclass
from typing import Protocol

from spex_mech.components.grammar import LETTERS, Kind


@dataclass(frozen=True)
class ModelShape:
    """What a model has to ablate, layer by layer.

    `heads`, `kv_heads` and `neurons` hold one count a layer (0: this layer shows none); `mlps` says which layers
    have an MLP. A model that is bound together with a prompt has `segments` or `tokens` of it too.

    Attributes:
        experts: routed experts of each layer's mixture; empty where no layer has one.
        shared: whether a layer's MLP adds something beside its experts.
        adapters: the names of adapters that act; `adapted` says in which layers.
        own: (name, parts) of sites of the user's own.
        absent: why something that one might ask for is no component, for messages.
    """

    name: str
    heads: tuple[int, ...]
    kv_heads: tuple[int, ...]
    mlps: tuple[bool, ...]
    neurons: tuple[int, ...]
    d_vocab: int
    d_vocab_out: int = 0  # 0: the same as d_vocab
    segments: int = 0
    tokens: int = 0
    experts: tuple[int, ...] = ()
    shared: tuple[bool, ...] = ()
    adapters: tuple[str, ...] = ()
    adapted: tuple[bool, ...] = ()
    own: tuple[tuple[str, int], ...] = ()
    absent: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "d_vocab_out", self.d_vocab_out or self.d_vocab)

    @property
    def n_layers(self) -> int:
        return len(self.heads)

    def count(self, kind: Kind, layer: int, label: str = "") -> int:
        """How many components of one kind a layer has; of adapters and sites of the user's own, those with a label.

        >>> ModelShape("toy", (2, 2), (2, 2), (True, False), (8, 0), 10).count("neuron", 0)
        8
        """
        if not 0 <= layer < self.n_layers:
            return 0
        if kind in LETTERS:
            return {"segment": self.segments, "token": self.tokens}.get(kind, 0) if layer == 0 else 0
        if kind == "part":
            return dict(self.own).get(label, 0) if layer == 0 else 0
        if kind in ("adapter", "adapted"):
            there = layer == 0 if kind == "adapter" else self.adapted[layer : layer + 1] == (True,)
            return int(there and bool(self.adapters) and (not label or label in self.adapters))
        counts = {"head": self.heads, "kv": self.kv_heads, "neuron": self.neurons, "expert": self.experts,
                  "shared": self.shared}  # fmt: skip
        if kind in counts:
            return int((counts[kind] or (0,) * self.n_layers)[layer])
        return int(self.mlps[layer]) if kind == "mlp" else int(self.heads[layer] > 0)

    def describe(self) -> str:
        """One line for error messages: ``gpt2 (12 layers, 12 heads, 12 MLPs of 3,072 neurons)``."""
        heads, neurons = sorted(set(self.heads)), sorted({n for n in self.neurons if n})
        parts = [f"{self.n_layers} layer{'s' * (self.n_layers != 1)}", f"{'/'.join(map(str, heads))} heads"]
        mlps, experts = sum(self.mlps), sorted({n for n in self.experts if n})
        if mlps:
            width = f" of {'/'.join(f'{n:,}' for n in neurons)} neurons" if neurons else ""
            parts.append(f"{mlps} MLP{'s' * (mlps != 1)}{width}")
        if experts:
            shared = " beside shared ones" if any(self.shared) else ""
            parts.append(f"mixtures of {'/'.join(map(str, experts))} experts{shared}")
        if self.adapters:
            parts.append(f"adapter{'s' * (len(self.adapters) != 1)} {', '.join(self.adapters)}")
        parts += [f"{count:,} parts of {name}" for name, count in self.own]
        if self.segments or self.tokens:
            parts.append(f"{self.segments} segments" if self.segments else f"{self.tokens} tokens of the prompt")
        return f"{self.name} ({', '.join(parts)})"


class HasShape(Protocol):
    """Anything that knows its `ModelShape`; every subject does."""

    @property
    def shape(self) -> ModelShape: ...
