"""`Linked`: any decoder, with a link where the metric needs one.

1. The base decoder decodes the responses as they are. Where no link is needed that is the answer, bit for bit.
2. **A look.** Generalised pursuit (`fit.Grower`) is fitted with and without links to the masks that are not held
   out. Unless some link leaves a twentieth less variance than none, there is none.
3. **Cross-validation** of the two best links against the identity: every mask is predicted by fits that have not seen
   it. A link must win by more than two standard errors of the difference.
4. **A duel** with the base decoder, both fitted to three quarters of those masks, on the last quarter; again by more
   than two standard errors, and by half a hundredth of the variance. So where the base decoder sees as well without a
   link, or nearly, there is none.

The strong sets that the base decoder found are where each fit with a link begins, so sets that need no strong subsets,
as SPEX finds them, are not lost. The held-out masks take part in none of this: both R² are of them.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spex_mech.errors import DecodeError
from spex_mech.names import LINK_CHOICES
from spex_mech.walsh.certainty.independence import FEWEST
from spex_mech.walsh.certainty.weigh import set_aside
from spex_mech.walsh.decoders.refit import noise_floor
from spex_mech.walsh.decoders.screening import Members
from spex_mech.walsh.decoding import Decoded, Decoder, Outcome, Samples, fold_masks, judge, r_squared, split_masks
from spex_mech.walsh.link.fit import Grower, LinkedFit
from spex_mech.walsh.link.shapes import SHAPES
from spex_mech.walsh.spectrum import Basis, Spectrum

LEAST_MASKS = 24  # fewer are not cross-validated
MOST_LOOKED_AT = 1 << 33  # components² × masks: what one round of pursuit multiplies
# _LESS and _STRONG, each halved or doubled: no choice of a link and no R² changes (bench constants).
_WORTH = 0.005  # of the variance: what a link must explain more, since interactions behind a link are harder to read
_LESS = 0.05  # share of the variance left over that a link must take away
_STRONG = 5.0  # standard errors from which on a set of the base decoder is one to begin with
_FINALISTS, _DUEL = 2, 0.25


@dataclass(frozen=True)
class Linked:
    """A base decoder that may put a link between its polynomial and the responses.

    Attributes:
        base: decodes what needs no link, and is what a link must beat.
        link: "auto" decides by evidence; a family's name takes the best link of that family whatever the evidence,
            which `stats["link"]` tells all the same.
        grower: of the fits with a link; folds: of their cross-validation.
    """

    base: Decoder
    link: str = "auto"
    grower: Grower = field(default_factory=Grower)
    folds: int = 4

    def __post_init__(self) -> None:
        if self.link not in LINK_CHOICES:
            raise DecodeError(f"there is no link {self.link!r}; the links are {', '.join(LINK_CHOICES)}.")

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def heldout(self) -> float:
        """Share of the masks held out: the base decoder's own, so that both are judged on the same masks."""
        return getattr(self.base, "heldout", 0.2)

    @property
    def least_masks(self) -> int:
        return getattr(self.base, "least_masks", 1)

    def decode(self, samples: Samples, *, seed: int) -> Decoded:
        """See `Decoder`. With a link, the spectrum is on the latent scale, and `Decoded.raw` is the base decoder's.

        ``stats["link"]`` has ``name``, ``asked``, ``why``, ``heldout_r2_without`` (the base decoder's) and, as far as
        it went, ``left`` (share of the variance, by shape), ``cross_validated`` (R² by shape), ``duel`` (R² of both).
        The link is one of the mean over outputs. Raises what the base decoder raises.
        """
        started = time.perf_counter()
        plain = self.base.decode(samples, seed=seed)
        if self.link == "identity":
            return plain
        found, evidence = _LinkSearch(self, samples, plain, seed).run()
        evidence |= {"asked": self.link, "heldout_r2_without": plain.stats["heldout_r2"]}
        seconds = time.perf_counter() - started
        if found is None:
            return replace(plain, stats={**plain.stats, "link": {"name": "identity", **evidence}, "seconds": seconds})
        without = {**plain.stats, "outcome": plain.outcome.name}
        stats = {**found[1], "link": {**found[0].link.to_dict(), **evidence}, "without_link": without}
        outcome = judge(found[0].spectrum, stats["heldout_r2"])
        return Decoded(found[0].spectrum, outcome, {**stats, "seconds": seconds}, found[0].link, plain)


class _LinkSearch:
    """One decoding's search for a link."""

    def __init__(self, options: Linked, samples: Samples, plain: Decoded, seed: int) -> None:
        self.held = _held_out(options, samples, seed)
        fitting = torch.ones(len(samples.keep), dtype=torch.bool).index_fill_(0, self.held, False).nonzero()[:, 0]
        self.options, self.samples, self.plain, self.seed = options, samples, plain, seed
        self.known = samples.take(fitting)
        self.groups = samples.groups[fitting.to(samples.groups.device)]
        self.keep, self.values = self.known.keep, self.known.mean_values
        self.evidence = dict[str, Any]()
        if 0 < samples.keep_prob < 1:
            self.basis = Basis.orthonormal(samples.keep_prob)

    def run(self) -> tuple[tuple[LinkedFit, dict[str, Any]] | None, dict[str, Any]]:
        """The fit with a link and its stats, or None; and the evidence."""
        shape, why = self._shape()
        self.evidence["why"] = why
        if shape is None:
            return None, self.evidence
        fit = self._fit(self.known, shape, self.plain.judged.spectrum)
        if fit.link.is_identity:
            self.evidence["why"] = "no set of components was found under a link"
            return None, self.evidence
        truth = self.samples.mean_values[self.held]
        r2 = r_squared(truth, fit.predict(self.samples.keep[self.held]))
        counts = {"masks_fitted": len(self.keep), "masks_heldout": len(self.held), "terms": len(fit.spectrum)}
        return (fit, {"heldout_r2": r2, **counts}), self.evidence

    def _shape(self) -> tuple[str | None, str]:
        """The shape that is needed, or was asked for; and why."""
        asked, missing = self.options.link, self._obstacle()
        if missing is not None and asked != "auto":
            raise DecodeError(f"the link {asked!r} cannot be fitted: {missing}. Give link='identity', or other masks.")
        if missing is not None:
            return None, missing
        left = self._residual_shares([name for name, shape in SHAPES.items() if asked in ("auto", shape.link)])
        best = sorted((name for name in left if name != "identity"), key=lambda name: left[name])
        return (best[0], "it was asked for") if asked != "auto" else self._by_evidence(left, best[:_FINALISTS])

    def _obstacle(self) -> str | None:
        """What a link cannot be fitted without, or "auto" does not look without."""
        known, auto = self.known, self.options.link == "auto"
        if not 0 < self.samples.keep_prob < 1 or not len(self.held) or float(self.values.std(correction=0)) == 0:
            return "the masks or the responses do not vary"
        if len(known.keep) < LEAST_MASKS:
            return f"{len(known.keep)} masks to fit to are too few to tell a link from none"
        if self.plain.judged.spectrum.n != known.n:
            return "the polynomial is one of groups of components, the masks are of components"
        if auto and self.plain.outcome is Outcome.COMPLETE:
            return "every mask was measured, so the polynomial is exact as it is"
        if auto and self.plain.stats["heldout_r2"] > 1 - _WORTH:
            return "without one next to nothing is left to explain"
        if auto and known.n**2 * len(known.keep) > MOST_LOOKED_AT:
            return f"{known.n:,} components × {len(known.keep):,} masks are more than are looked through unasked"
        return None

    def _by_evidence(self, left: Mapping[str, float], best: list[str]) -> tuple[str | None, str]:
        if not left[best[0]] < (1 - _LESS) * left["identity"]:
            return None, f"no link leaves {_LESS:.0%} less variance than none"
        winner = self._cross_validated([name for name in SHAPES if name in best])
        if winner is None:
            return None, "no link predicts unseen masks better than none by two standard errors"
        if not self._wins_duel(winner):
            return None, f"{self.options.base.name} predicts unseen masks as well without"
        return winner, "it predicts unseen masks better than none"

    def _residual_shares(self, shapes: list[str]) -> dict[str, float]:
        """The variance that each leaves, as a share of all."""
        spread = float(self.values.var(correction=0))
        fits = {name: self._fit(self.known, name, self.plain.judged.spectrum) for name in ("identity", *shapes)}
        left = {name: fit.noise / spread for name, fit in fits.items()}
        self.evidence["left"] = left
        return left

    def _cross_validated(self, shapes: list[str]) -> str | None:
        """The best shape on unseen masks, if it beats the identity clearly; a spline only if it beats others so."""
        fold = fold_masks(self.groups, self.options.folds, self.seed)
        seeds = _strong_sets(self.plain.judged.spectrum, len(self.keep))
        unseen = {
            name: self.options.grower.cross_fit(self.keep, self.values, self.basis, fold, name, seeds)
            for name in ("identity", *shapes)
        }
        values = self.values.cpu()
        self.evidence["cross_validated"] = {name: r_squared(values, guess) for name, guess in unseen.items()}
        best = min(shapes, key=lambda name: (name == "spline", float((values - unseen[name]).square().mean())))
        if "spline" in shapes and clearly_better(values, unseen["spline"], unseen[best]):
            best = "spline"
        return best if clearly_better(values, unseen[best], unseen["identity"]) else None

    def _wins_duel(self, shape: str) -> bool:
        """Whether a link predicts better than the base decoder masks that neither has seen."""
        train, test = split_masks(self.groups, _DUEL, self.seed + 1)
        try:
            rival = self.options.base.decode(self.known.take(train), seed=self.seed).spectrum
        except DecodeError:  # it needs all of its masks
            reported, unseen = self.plain.stats["heldout_r2"], self.evidence["cross_validated"][shape]
            self.evidence["duel"] = {"link": unseen, self.options.base.name: reported}
            return reported is not None and unseen - reported > max(_LESS * (1 - reported), _WORTH)
        keep, values = self.keep[test], self.values[test].cpu()
        without = rival.mean_output().evaluate(keep).cpu()
        linked = self._fit(self.known.take(train), shape, rival).predict(keep).cpu()
        self.evidence["duel"] = {"link": r_squared(values, linked), self.options.base.name: r_squared(values, without)}
        return clearly_better(values, linked, without)

    def _fit(self, samples: Samples, shape: str, spectrum: Spectrum) -> LinkedFit:
        seeds = _strong_sets(spectrum, len(samples.keep))
        return self.options.grower.fit(samples.keep, samples.mean_values, self.basis, shape, seeds)


def _held_out(options: Linked, samples: Samples, seed: int) -> Int[Tensor, " row"]:
    """Behind a code its fair coins, if there are enough; else the share that the base decoder sets aside as well."""
    rows = set_aside(samples, options.base, seed)
    enough = rows is not None and len(rows) >= FEWEST
    return rows if enough and rows is not None else split_masks(samples.groups, options.heldout, seed)[1]


def clearly_better(values: Float[Tensor, " mask"], one: Float[Tensor, " mask"], other: Float[Tensor, " mask"]) -> bool:
    """Whether `one` has the smaller squared error: by more than two standard errors of the difference over masks, a
    twentieth of the other's error, half a hundredth of the variance, and what rounding makes."""
    first, second = (values - one).square(), (values - other).square()
    gap = second - first
    error = float(gap.std()) / len(gap) ** 0.5 if len(gap) > 1 else float("inf")
    least = max(_LESS * float(second.mean()), _WORTH * float(values.double().var(correction=0)))
    return float(gap.mean()) > max(2 * error, least, 4 * noise_floor(values) ** 2)


def _strong_sets(spectrum: Spectrum, masks: int) -> list[Members]:
    """The sets that are many standard errors from 0, strongest first; a tenth of the masks' number at most."""
    mean = spectrum.mean_output()
    if mean.stderr is None:
        return []
    z = (mean.coefficients / mean.stderr.clamp(min=1e-300)).abs().masked_fill(mean.orders == 0, 0.0)
    order = z.argsort(descending=True, stable=True)[: masks // 10]
    return [mean.sets[row] for row in order.tolist() if float(z[row]) >= _STRONG]
