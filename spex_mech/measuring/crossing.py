"""`settle_rows`: how many masks are asked and how many prompts each meets, where what is paid for is rows.

A row is one prompt under one mask. Crossed, every mask meets every prompt, and R rows are R / P masks; or a mask meets
b of the P prompts, and they are R / b.
"""

from dataclasses import dataclass, replace
from typing import Any

from spex_mech.errors import DesignError
from spex_mech.measuring.ask import ALL, AUTO, CODED, Ask
from spex_mech.walsh.masks.design import MAX_COMPLETE, MaskDesign
from spex_mech.walsh.masks.prompt_design import PromptDesign

MOST_UNCROSSED = 8192  # rows: a process over rows looks at no more, and of more it was never measured beside masks
AGAIN = 32  # of one prompt a mask: one in so many is asked again. One in eight costs .02 to .03 of R² (bench rows)
LEAST_AGAIN, MOST_AGAIN = 48, 128  # and never fewer, nor more than tell R² to a few hundredths, or than a quarter


@dataclass(frozen=True)
class Crossing:
    """So many masks, of which each meets `per_mask` of the prompts; `reason` says why so, in words."""

    masks: int
    per_mask: int
    prompts: int
    reason: str

    @property
    def crossed(self) -> bool:
        """Whether every mask meets every prompt."""
        return self.per_mask >= self.prompts

    @property
    def rows(self) -> int:
        """What is paid for."""
        return self.masks * self.per_mask

    @property
    def again(self) -> int:
        """How many masks are asked again with another prompt: of one prompt a mask alone, nobody can tell how much
        prompts differ from how much a polynomial misses."""
        if self.crossed or self.per_mask > 1:
            return 0
        count = min(max(LEAST_AGAIN, self.masks // AGAIN), MOST_AGAIN, self.masks // 4)
        return count - count % self.prompts if count > self.prompts else count  # whole packs keep prompts balanced

    def deal(self, design: MaskDesign) -> PromptDesign | None:
        """Which prompts the masks of a design meet; None: all of them."""
        return None if self.crossed else PromptDesign.beside(design, self.prompts, self.per_mask)

    def describe(self) -> dict[str, Any]:
        """For the run record."""
        return {"masks": self.masks, "prompts": self.prompts, "per_mask": self.per_mask, "reason": self.reason}


def settle_rows(n: int, prompts: int | None, ask: Ask) -> Crossing:
    """The masks, and the prompts a mask, that `ask` pays for, over n components.

    Args:
        prompts: how many there are; None: of a lens that gives all outputs of a mask at one price.

    Raises `DesignError`: fewer rows than one mask takes; prompts a mask together with what needs all of them.
    """
    if prompts is None:
        return Crossing(_masks_only(ask), 1, 1, "every mask gives all of its values at once")
    asked = ask.prompts_per_mask
    each = asked if isinstance(asked, int) and asked < prompts else prompts
    rows = ask.rows if ask.rows is not None else (ask.budget or 0) * each
    per_mask, reason = choose_per_mask(n, prompts, rows, ask)
    if rows < per_mask:
        raise DesignError(
            f"rows={rows:,} was asked for; one mask under {per_mask:,} prompts takes as many rows. Raise it, or let a "
            "mask meet fewer prompts: prompts_per_mask=1."
        )
    return Crossing(rows // per_mask, per_mask, prompts, reason)


def choose_per_mask(n: int, prompts: int, rows: int, ask: Ask) -> tuple[int, str]:
    """How many prompts a mask meets, and why.

    All of them where there is one, where all 2^n masks under all prompts fit the rows, and for coded masks, which are
    decoded whole. Else as many as were asked for; by "auto" one where the budget is told in rows, up to
    `MOST_UNCROSSED`, and joint decodes: on two cards, at two keep-probabilities and three numbers of rows, the mean
    over prompts was decoded better from them every time (`bench rows`).
    """
    asked = ask.prompts_per_mask
    if prompts == 1:
        return 1, "there is one prompt"
    if asked == ALL or (isinstance(asked, int) and asked >= prompts):
        return prompts, "as asked"
    if ask.decoder in (AUTO, "exact") and ask.keep_prob != CODED and n <= MAX_COMPLETE and prompts << n <= rows:
        return prompts, f"all 2^{n} masks under all prompts fit the rows"
    whole = {"coded masks": ask.keep_prob == CODED or ask.decoder == "spex", "decoder 'exact'": ask.decoder == "exact"}
    whole["shared_layers"] = ask.shared_layers > 1
    needing = [what for what, there in whole.items() if there]
    if needing and isinstance(asked, int):
        raise DesignError(
            f"{asked} of {prompts:,} prompts a mask were asked for, together with {' and '.join(needing)}: "
            f"{'these need' if len(needing) > 1 else 'that needs'} every prompt under every mask. Leave "
            "prompts_per_mask at 'auto', or leave the other."
        )
    if needing:
        return prompts, f"{' and '.join(needing)}: every mask meets every prompt"
    if isinstance(asked, int):
        return asked, "as asked"
    if ask.rows is None:
        return prompts, "the default of a budget in masks"
    if ask.decoder not in (AUTO, "joint"):
        return prompts, f"decoder {ask.decoder!r} takes what prompts have of their own for noise"
    if rows > MOST_UNCROSSED:
        return prompts, f"more than {MOST_UNCROSSED:,} rows"
    return 1, "the mean over prompts is known best from as many masks as the rows pay for"


def in_masks(ask: Ask, crossing: Crossing) -> Ask:
    """The same asked in masks, for what divides a budget of masks further."""
    return replace(
        ask, rows=None, budget=crossing.masks, prompts_per_mask=ALL if crossing.crossed else crossing.per_mask
    )


def _masks_only(ask: Ask) -> int:
    if ask.rows is not None or isinstance(ask.prompts_per_mask, int):
        raise DesignError(
            "rows and prompts_per_mask were given, but parts of a prompt and training examples give all values of a "
            "mask at the price of one: every mask meets them all. Give budget, the number of masks."
        )
    return ask.budget or 0
