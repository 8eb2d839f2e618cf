"""Which shortcuts hold for a model: each is tried against the plain path at binding, and left off where it differs."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from spex_mech.ablation.backends.base import ModelSubject
from spex_mech.ablation.edits import RowEdit
from spex_mech.ablation.identity import made_up_tokens
from spex_mech.ablation.subject import Edit, Shortcuts, Site, SiteKind

FURTHER: tuple[SiteKind, ...] = ("shared", "experts", "adapters", "own")
SHORTCUT_ROWS = 4  # masks 0 and 1 differ in the last layer only, so that their earlier layers can be shared
SHORTCUT_TOLERANCE = 1e-5  # relative to the largest logit, float32
COARSE = 0.02  # of half precision, whose own rounding is of that size


def try_shortcuts(subject: ModelSubject) -> Shortcuts:
    """Set and return the shortcuts that give the plain path's logits, up to 1e-5 of their size, under random edits.

    They are added one by one, each on top of those that hold, so what is returned has been tried as a whole. Sites that
    not every model has are tried after the others, kind by kind, with them and alone, so that rows are made there;
    where one does not bear what holds, the kind stands apart.
    """
    ordinary = [site for site in subject.sites if site.kind not in FURTHER]
    held = _held(subject, ordinary)
    for kind in FURTHER:
        some = [site for site in subject.sites if site.kind == kind]
        trials = ([*ordinary, *some], some[:1], some[-1:]) if some else ()
        if not all(_Trial(subject, made_up_tokens(subject)[:1], sites).agrees(held) for sites in trials):
            held = replace(held, apart=held.apart | set(some))
    if not held.apart.isdisjoint(subject.spliced):  # which are in every pass
        held = Shortcuts(apart=held.apart)
    subject.shortcuts = held
    return held


def _held(subject: ModelSubject, sites: list[Site]) -> Shortcuts:
    possible, held = subject.possible_shortcuts(), Shortcuts()
    trial = _Trial(subject, made_up_tokens(subject)[:1], sites)
    if possible.one_row and trial.agrees(Shortcuts(one_row=True)):
        held = Shortcuts(one_row=True)
    for name in ("narrow", "last", "grow", "skip"):
        wanted = replace(held, **{name: getattr(possible, name)})
        if wanted != held and (held.one_row or name != "grow") and trial.agrees(wanted):
            held = wanted
    return held


class _Trial:
    """Random masks on one made-up prompt, and the logits that the plain path gives for them."""

    def __init__(self, subject: ModelSubject, tokens: Int[Tensor, "row pos"], sites: list[Site]) -> None:
        self.subject, self.tokens, self.position, self.sites = subject, tokens, tokens.shape[1] - 1, sites
        generator = torch.Generator().manual_seed(0)
        self.last = max(site.layer for site in subject.sites if site.kind not in FURTHER)
        self.kept: dict[Site, Tensor] = {}
        for site in sites:
            kept = torch.rand(SHORTCUT_ROWS, 1, site.parts, generator=generator) < 0.6
            if site.kind == "mlp":  # some rows, and in every third layer none
                kept = torch.tensor([True, True, False, True])[:, None, None] & (site.layer % 3 != 1)
            self.kept[site] = kept if site.layer == self.last else kept[[0, 0, 2, 3]]
        self.plain = {only: self._run(Shortcuts(), only) for only in ("all", "mlp")}

    def agrees(self, trial: Shortcuts) -> bool:
        """Whether the logits are those of the plain path, with every site edited and with the MLPs alone."""
        return all(self._same(trial, only, plain) for only, plain in self.plain.items())

    def _same(self, trial: Shortcuts, only: str, plain: Tensor) -> bool:
        try:
            fast = self._run(trial, only)
        except (RuntimeError, ValueError, IndexError, TypeError):  # the model's code does not broadcast: no shortcut
            return False
        scale = float(plain.float().abs().max()) or 1.0
        tolerance = SHORTCUT_TOLERANCE if plain.dtype in (torch.float32, torch.float64) else COARSE
        return fast.shape == plain.shape and float((fast - plain).float().abs().max()) <= tolerance * scale

    def _run(self, trial: Shortcuts, only: str) -> Tensor:
        self.subject.shortcuts = trial
        sites = [site for site in self.sites if only in ("all", site.kind)]
        layers = sorted({site.layer for site in sites})
        grow = trial.grow and len(layers) > 1 and layers[-1] == self.last
        early = torch.tensor([0, 2, 3]) if grow else torch.arange(SHORTCUT_ROWS)
        edits = {
            site: self._edit(
                site, site in trial.narrow, torch.arange(SHORTCUT_ROWS) if site.layer == self.last else early
            )
            for site in sites
        }
        growth: Mapping[int, Tensor] | None = {self.last: torch.tensor([0, 0, 1, 2])} if grow else None
        rows = self.tokens if trial.one_row and sites else self.tokens.expand(SHORTCUT_ROWS, -1)
        logits = self.subject.forward(rows, edits, torch.full((len(rows),), self.position), growth)
        return logits.expand(SHORTCUT_ROWS, -1) if not sites else logits

    def _edit(self, site: Site, narrow: bool, rows: Tensor) -> Edit:
        """Replacements differ by position, so that a site that sees a wrong position is found out."""
        where = torch.tensor([self.position]) if narrow else torch.arange(self.tokens.shape[1])
        other, kept = 0.1 * where[None, :, None], self.kept[site][rows]
        if site.kind == "mlp":
            return RowEdit(kept[:, 0, 0], other)

        def edit(x: Tensor) -> Tensor:
            whole = kept.repeat_interleave(site.width, 2).to(x.device)
            return torch.where(whole, x, other.to(x.device, x.dtype))

        return edit
