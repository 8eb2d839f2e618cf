"""Which shortcuts hold for a model: each is tried against the plain path at binding, and left off where it differs."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from spex_mech.ablation.self_test import made_up_tokens
from spex_mech.ablation.subject import Edit, Shortcuts, Site, Subject

ROWS = 3
TOLERANCE = 1e-5  # relative to the largest logit


class Hastening(Subject, Protocol):
    """A subject that may take shortcuts."""

    shortcuts: Shortcuts

    def possible_shortcuts(self) -> Shortcuts: ...


def try_shortcuts(subject: Hastening, n_ctx: int | None = None) -> Shortcuts:
    """Set and return the shortcuts that give the plain path's logits, up to 1e-5 of their size, under random edits."""
    possible = subject.possible_shortcuts()
    tokens = made_up_tokens(subject, n_ctx)[:1]
    position = tokens.shape[1] - 1
    kept = _random_parts(subject)
    subject.shortcuts = Shortcuts()
    whole = _edits(kept, frozenset(), position)
    plain = subject.forward(tokens.expand(ROWS, -1), whole, torch.full((ROWS,), position))
    held = Shortcuts()
    for trial in (Shortcuts(one_row=possible.one_row), Shortcuts(narrow=possible.narrow)):
        if trial != Shortcuts() and _agrees(subject, trial, tokens, kept, plain):
            held = replace(held, one_row=held.one_row or trial.one_row, narrow=held.narrow | trial.narrow)
    subject.shortcuts = held
    return held


def _agrees(subject: Hastening, trial: Shortcuts, tokens: Tensor, kept: Mapping[Site, Tensor], plain: Tensor) -> bool:
    subject.shortcuts = trial
    position = tokens.shape[1] - 1
    rows: Int[Tensor, "row pos"] = tokens if trial.one_row else tokens.expand(ROWS, -1)
    try:
        fast = subject.forward(rows, _edits(kept, trial.narrow, position), torch.full((ROWS,), position))
    except (RuntimeError, ValueError, IndexError, TypeError):  # the model's code does not broadcast: no shortcut
        return False
    scale = float(plain.float().abs().max()) or 1.0
    return fast.shape == plain.shape and float((fast - plain).float().abs().max()) <= TOLERANCE * scale


def _random_parts(subject: Subject) -> dict[Site, Bool[Tensor, "row pos part"]]:
    generator = torch.Generator().manual_seed(0)
    return {s: (torch.rand(ROWS, 1, s.parts, generator=generator) < 0.6).to(subject.device) for s in subject.sites}


def _edits(kept: Mapping[Site, Tensor], narrow: frozenset[Site], position: int) -> dict[Site, Edit]:
    def of(site: Site) -> Edit:
        def edit(x: Tensor) -> Tensor:
            # the other value differs by position, so that a site that sees a wrong position is found out
            where = torch.arange(x.shape[1], device=x.device) if site not in narrow else torch.tensor([position])
            other = 0.1 * where.to(x.device, x.dtype)[None, :, None]
            return torch.where(kept[site].repeat_interleave(site.width, 2), x, other)

        return edit

    return {site: of(site) for site in kept}
