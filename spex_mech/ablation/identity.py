"""Which model it is, by what it computes: logits of a fixed probe, and the modes that change them.

Parameters alone do not say it: adapters switched off, a router's top_k, or a model in training mode leave every weight
as it was. Two probes of one model on two machines differ by rounding; records are compared with that allowed for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from spex_mech.ablation.subject import Subject
from spex_mech.errors import ResponseError
from spex_mech.files.records import PROBE_LOGITS, differences

TEST_LENGTH = 6
_DIGITS = 6  # of a logit that is written down
_ROUNDING = 1e-3  # of the largest logit, on devices whose sums have no fixed order
_ROUTERS = ("top_k", "num_experts_per_tok")


def made_up_tokens(subject: Subject) -> Int[Tensor, "row pos"]:
    """Two short rows of token ids inside the vocabulary and the context."""
    length = min(TEST_LENGTH, getattr(subject, "n_ctx", None) or TEST_LENGTH)
    return (torch.arange(2 * length, device=subject.device) * 7 + 3).reshape(2, length) % subject.shape.d_vocab


def describe_modes(module: nn.Module) -> dict[str, Any]:
    """What changes the values and is no parameter: adapters that act, and how many experts a token goes to."""
    active, merged, disabled, routed = set[str](), set[str](), False, list[int]()
    for part in module.modules():
        if hasattr(part, "base_layer") and hasattr(part, "disable_adapters"):  # made by PEFT
            names = getattr(part, "active_adapters", [])
            disabled |= bool(part.disable_adapters)
            active |= set() if part.disable_adapters else {str(name) for name in names}
            merged |= {str(name) for name in getattr(part, "merged_adapters", [])}
        routed += [n for n in (getattr(part, name, None) for name in _ROUTERS) if type(n) is int][:1]
    adapters = {"active": sorted(active), "merged": sorted(merged)} if active or merged or disabled else {}
    return {**({"adapters": adapters} if adapters else {}), **({"top_k": _shortened(routed)} if routed else {})}


def probe(subject: Subject) -> Float[Tensor, "..."]:
    """Logits of two short made-up prompts, float32 on the CPU: one tiny forward pass; and what autoencoders on sites of
    the user's own compute."""
    logits = subject.forward(made_up_tokens(subject), {}, None).float().cpu().clone()
    own: Any = getattr(subject, "own_probes", dict)()
    return torch.cat([logits.flatten(), *own.values()]) if own else logits


def describe_probe(subject: Subject, module: nn.Module) -> dict[str, Any]:
    """What a record keeps: sixteen logits of the last positions, and the modes."""
    raw = subject.forward(made_up_tokens(subject), {}, None)
    dtype, logits = str(raw.dtype).removeprefix("torch."), raw.reshape(len(raw), -1, raw.shape[-1])[:, -1].float().cpu()
    chosen = logits[:, torch.linspace(0, logits.shape[1] - 1, 8).long()].flatten().tolist()
    rounded = [float(f"{x:.{_DIGITS}g}") for x in chosen]
    return {PROBE_LOGITS: rounded, "dtype": dtype, **describe_modes(module)}


@dataclass
class Watch:
    """Whether a subject is still the model that it was when a run began; of one without modules nothing is known.

    The probe must be the same to the bit on a CPU with as many threads. Where it is, and a weight has been written to
    all the same, the hash of all weights decides.
    """

    probe: Tensor | None = None
    record: Mapping[str, Any] | None = None
    written: tuple[int, ...] = ()
    threads: int = 0

    def begin(self, subject: Subject, record: Mapping[str, Any]) -> None:
        """Note what the model is now, with what its record says; what was noted before stays."""
        if self.probe is None and live_module(subject) is not None:
            self.probe, self.record, self.written = probe(subject), record, _versions(subject)
            self.threads = torch.get_num_threads()

    def check(self, subject: Subject) -> None:
        """Raise `ResponseError` where it is another model now, naming what differs."""
        if self.probe is None or self.record is None:
            return
        now, written = probe(subject), _versions(subject)
        moved = float((now - self.probe).abs().max())
        same = subject.device.type == "cpu" and torch.get_num_threads() == self.threads
        allowed = 0.0 if same else _ROUNDING * float(self.probe.abs().max())
        if moved <= allowed and written == self.written:
            return
        found = differences(self.record, subject.provenance, "subject.", sides=("at the start", "now"))
        if not moved <= allowed or found:
            told = f"logits of a fixed prompt moved by {moved:.2g}"
            raise ResponseError(
                f"the model was changed while it was measured: {'; '.join([*found[:4], told])}. The chunk at which "
                "this was seen is thrown away, those before it are kept in the run folder. Put the model back as it "
                "was and run the same again, or begin anew in another folder."
            )
        self.written = written


def live_module(subject: Any) -> nn.Module | None:
    """The torch module of a subject, or of the one inside it."""
    inner = getattr(subject, "inner", None)
    module = getattr(subject, "module", None)
    return module if isinstance(module, nn.Module) else None if inner is None else live_module(inner)


def _versions(subject: Subject) -> tuple[int, ...]:
    """How often each parameter has been written to, as torch counts it."""
    module = live_module(subject)
    return () if module is None else tuple(p._version for p in module.parameters() if not p.is_inference())


def _shortened(counts: list[int]) -> int | list[int]:
    return counts[0] if len(set(counts)) == 1 else counts
