"""`MaskDesign`: which masks will be asked, as a value made of integers and a seed.

The same integers give the same masks on every device, in every process and for every way of cutting them into chunks:
each keep bit is a function of (seed, mask, component) alone, a counter-based hash (splitmix64's finaliser, Steele
et al. 2014), so no table of all masks ever exists.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from spex_mech.errors import DesignError
from spex_mech.walsh.masks.coded import Code, plan_code
from spex_mech.walsh.masks.hashing import uniform_bits as uniform_bits

DesignKind = Literal["bernoulli", "stratified", "complete", "coded"]
_PIECE = 1 << 21  # keep bits drawn at a time, for which a hash needs some dozens of bytes each
MAX_COMPLETE = 24  # 2^24 masks are 16.8 million forward passes; beyond that "all masks" is a slip


@dataclass(frozen=True)
class MaskDesign:
    """A sequence of `n_masks` masks over `n` components, drawn lazily by `keep`.

    Make one with `bernoulli`, `stratified`, `complete` or `coded`. A coded design has a `code`; with `candidates` the
    code is over those components only and all others are kept (`rest_kept`) or ablated in every mask; with `players` it
    is over these groups of components, each kept or ablated as one. With `repeats` above 1 the bits of the components
    in `shared` are drawn once for every run of that many masks. The last `again` masks are the first ones once more,
    for designs in which a mask meets some prompts only (`PromptDesign`): what two prompts say of one mask tells how
    much prompts differ.
    """

    kind: DesignKind
    n: int
    n_masks: int
    seed: int = 0
    keep_probs: tuple[float, ...] = ()
    code: Code | None = None
    candidates: tuple[int, ...] | None = None
    rest_kept: bool = True
    shared: tuple[int, ...] = ()
    repeats: int = 1
    players: tuple[tuple[int, ...], ...] | None = None
    again: int = 0

    def __post_init__(self) -> None:
        if self.n < 1 or self.n_masks < 1:
            raise DesignError(
                f"a design needs at least one component and one mask, not {self.n:,} components and "
                f"{self.n_masks:,} masks."
            )
        self._check_kind()
        if self.code is not None:
            _check_coded(self.n, self.n_masks, self.code, self.candidates, self.players)
        bad = [q for q in self.keep_probs if not 0 < q < 1]
        if bad:
            raise DesignError(
                f"keep-probabilities must lie strictly between 0 and 1, not {bad}; 0.9 ablates a tenth of the "
                f"components per mask."
            )

    def _check_kind(self) -> None:
        """Whether the numbers are those of the kind; they may come from a file."""
        if self.kind == "complete" and (self.n > MAX_COMPLETE or self.n_masks != 1 << self.n or self.keep_probs):
            raise DesignError(
                f"a complete design of {self.n:,} components has 2^{self.n} masks, no keep-probability and at most "
                f"{MAX_COMPLETE} components, not {self.n_masks:,} masks and {self.keep_probs}."
            )
        if (self.kind == "coded") != (self.code is not None):
            raise DesignError(f"a {self.kind} design {'needs a' if self.kind == 'coded' else 'has no'} code.")
        if self.repeats < 1 or (self.repeats > 1) != bool(self.shared) or (self.shared and not self.keep_probs):
            raise DesignError(
                f"{len(self.shared):,} components share bits over {self.repeats:,} masks in a {self.kind} design; only "
                "bernoulli and stratified designs share bits, of at least one component over at least two masks."
            )
        if not 0 <= self.again <= self.n_masks // 2 or (self.again and (not self.keep_probs or self.repeats > 1)):
            raise DesignError(
                f"{self.again:,} of {self.n_masks:,} masks of a {self.kind} design were to be asked again; at most "
                "half are, of bernoulli and stratified designs in which masks share no bits."
            )
        if list(self.shared) != sorted(set(self.shared)) or not all(0 <= i < self.n for i in self.shared):
            raise DesignError(f"shared components must be different numbers from 0 to {self.n - 1}, ascending.")
        if (self.kind == "bernoulli" and len(self.keep_probs) != 1) or (
            self.kind == "stratified" and not self.keep_probs
        ):
            raise DesignError(
                f"a bernoulli design needs one keep-probability, a stratified one at least one, not {self.keep_probs}."
            )

    @classmethod
    def bernoulli(cls, n: int, n_masks: int, keep_prob: float = 0.5, seed: int = 0) -> "MaskDesign":
        """Every component kept with probability `keep_prob`, independently."""
        return cls("bernoulli", n, n_masks, seed, (float(keep_prob),))

    @classmethod
    def stratified(cls, n: int, n_masks: int, keep_probs: Sequence[float], seed: int = 0) -> "MaskDesign":
        """Mask m is drawn with keep-probability ``keep_probs[m % len(keep_probs)]``: equal shares, interleaved."""
        return cls("stratified", n, n_masks, seed, tuple(float(q) for q in keep_probs))

    @classmethod
    def complete(cls, n: int) -> "MaskDesign":
        """All 2^n masks; bit i of the mask's number says that component i is ablated."""
        if n > MAX_COMPLETE:
            raise DesignError(
                f"all masks of {n:,} components are 2^{n}; complete designs stop at {MAX_COMPLETE}. Take fewer "
                f"components, groups, or a sampled design."
            )
        return cls("complete", n, 1 << n)

    @classmethod
    def coded(
        cls,
        n: int,
        degree: int = 4,
        budget: int | None = None,
        seed: int = 0,
        candidates: Sequence[int] | None = None,
        rest_kept: bool = True,
        players: Sequence[Sequence[int]] | None = None,
    ) -> "MaskDesign":
        """SPEX's masks: three groups of 2^b masks under each delay of a BCH code, then what is left as fair coins.

        Every set of at most `degree` components has its own pattern of signs over the delays. The number of bits b is
        the largest that the budget allows; where masks are left, up to a tenth of the budget stays out of the code, as
        fair-coin masks to check the polynomial on, and the rest goes into more delays. `design.code.capacity` says
        about how many sets such a design recovers.

        Args:
            n: number of components.
            degree: largest set to be found, t.
            budget: number of masks; `smallest_budget(n, degree)` by default.
            seed: of all that is random in it.
            candidates: code these components only (ascending numbers), the others are fixed.
            rest_kept: whether the others are kept or ablated.
            players: code these disjoint groups of components, each kept or ablated as one; SPEX's polynomial is then
                over the groups, in their order. `random_blocks` draws groups so that a mask ablates a stated share.

        Raises `DesignError` where the budget is below the smallest, naming it.

        Source: SPEX, Kang et al. 2025 (arXiv 2502.13870), §4.
        """
        chosen = None if candidates is None else tuple(int(i) for i in candidates)
        groups = None if players is None else tuple(tuple(int(i) for i in group) for group in players)
        many = len(groups) if groups is not None else n if chosen is None else len(chosen)
        code = plan_code(many, degree, budget, seed)
        masks = code.size if budget is None else budget
        return cls("coded", n, masks, seed, (), code, chosen, rest_kept, players=groups)

    def sharing(self, shared: Sequence[int], repeats: int) -> "MaskDesign":
        """This design with the bits of `shared` components drawn once for every run of `repeats` masks.

        Where those are the components of the earlier layers, a run of masks passes these layers once. That is worth
        the passes saved, at the price of fewer different settings of the shared components: their main effects and
        interactions are seen in ``n_masks / repeats`` settings, everything else in `n_masks`. Decoders keep a run on
        one side of every split, so that held-out R² stays honest.
        """
        return replace(self, shared=tuple(shared), repeats=repeats)

    def asking_again(self, again: int) -> "MaskDesign":
        """This design with its last `again` masks replaced by the first ones once more."""
        return replace(self, again=again)

    @property
    def mean_keep_prob(self) -> float:
        """The probability that a component is kept, over the whole design."""
        return sum(self.keep_probs) / len(self.keep_probs) if self.keep_probs else 0.5

    def keep(
        self, start: int = 0, stop: int | None = None, device: torch.device | str = "cpu"
    ) -> Bool[Tensor, "mask component"]:
        """Masks `start` to `stop` (all by default; `stop` may lie behind the last), drawn on `device`."""
        stop = self.n_masks if stop is None else min(stop, self.n_masks)
        if not 0 <= start <= stop:
            raise DesignError(
                f"masks {start:,} to {stop:,} were asked of a design that has masks 0 to {self.n_masks:,}."
            )
        rows = torch.arange(start, stop, device=device).split(max(1, _PIECE // self.n))
        return torch.cat([self._draw(piece) for piece in rows])

    def _draw(self, rows: Int[Tensor, " mask"]) -> Bool[Tensor, "mask component"]:
        device = rows.device
        if self.code is not None:
            return self._spread(self.code.keep(rows))
        if self.kind == "complete":
            return (rows[:, None] >> torch.arange(self.n, device=device)) & 1 == 0
        first = self.n_masks - self.again
        rows = torch.where(rows < first, rows, rows - first)
        probabilities = torch.tensor(self.keep_probs, dtype=torch.float64, device=device)
        run = rows // self.repeats
        threshold = (probabilities * 2.0**53).round().long()[run % len(self.keep_probs)]
        keep = uniform_bits(self.seed, rows, self.n) < threshold[:, None]
        if self.shared:
            columns = torch.tensor(self.shared, device=device)
            keep[:, columns] = (uniform_bits(self.seed, run, self.n) < threshold[:, None])[:, columns]
        return keep

    def _spread(self, bits: Bool[Tensor, "mask player"]) -> Bool[Tensor, "mask component"]:
        """The players' keep bits in the columns of their components, all other components fixed."""
        if self.candidates is None and self.players is None:
            return bits
        groups = self.players if self.players is not None else tuple((i,) for i in self.candidates or ())
        columns = torch.tensor([i for group in groups for i in group], device=bits.device)
        owners = torch.tensor([p for p, group in enumerate(groups) for _ in group], device=bits.device)
        keep = bits.new_full((len(bits), self.n), self.rest_kept)
        keep[:, columns] = bits[:, owners]
        return keep

    def of_players(self, keep: Bool[Tensor, "mask component"]) -> Bool[Tensor, "mask player"]:
        """What masks of this design do to its players; the masks as they are where each component is its own."""
        if self.players is None:
            return keep
        return keep[:, torch.tensor([group[0] for group in self.players], device=keep.device)]

    def chunks(
        self, size: int, device: torch.device | str = "cpu", start: int = 0
    ) -> Iterator[tuple[int, Bool[Tensor, "mask component"]]]:
        """(number of the first mask, masks), in order from mask `start` on, `size` at a time."""
        if size < 1:
            raise DesignError(f"masks are cut into chunks of at least one, not of {size}.")
        for first in range(start, self.n_masks, size):
            yield first, self.keep(first, first + size, device)

    def to_dict(self) -> dict[str, Any]:
        """The integers and the seed, for a file; `from_dict` reads them back."""
        record: dict[str, Any] = {
            "kind": self.kind,
            "n": self.n,
            "n_masks": self.n_masks,
            "seed": self.seed,
            "keep_probs": list(self.keep_probs),
        }
        if self.shared:
            record |= {"shared": list(self.shared), "repeats": self.repeats}
        if self.again:
            record["again"] = self.again
        if self.code is not None:
            record["code"] = self.code.to_dict()
            record["candidates"] = None if self.candidates is None else list(self.candidates)
            record["rest_kept"] = self.rest_kept
        if self.players is not None:
            record["players"] = [list(group) for group in self.players]
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "MaskDesign":
        """The design that `to_dict` wrote; raises `DesignError` on anything else."""
        try:
            kind, n, n_masks, seed = record["kind"], int(record["n"]), int(record["n_masks"]), int(record["seed"])
            if kind not in ("bernoulli", "stratified", "complete", "coded"):
                raise DesignError(
                    f"unknown kind of design {kind!r}; this version reads bernoulli, stratified, complete and coded."
                )
            probabilities = tuple(float(q) for q in record["keep_probs"])
            if kind != "coded":
                shared, repeats = tuple(int(i) for i in record.get("shared", ())), int(record.get("repeats", 1))
                again = int(record.get("again", 0))
                return cls(kind, n, n_masks, seed, probabilities, shared=shared, repeats=repeats, again=again)
            chosen = record["candidates"]
            candidates = None if chosen is None else tuple(int(i) for i in chosen)
            groups = record.get("players")
            players = None if groups is None else tuple(tuple(int(i) for i in group) for group in groups)
            code, rest_kept = Code.from_dict(record["code"]), bool(record["rest_kept"])
            return cls(kind, n, n_masks, seed, probabilities, code, candidates, rest_kept, players=players)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise (
                error if isinstance(error, DesignError) else DesignError(f"this is not a mask design: {error!r}.")
            ) from error


def _check_coded(
    n: int, n_masks: int, code: Code, candidates: tuple[int, ...] | None, players: tuple[tuple[int, ...], ...] | None
) -> None:
    if candidates is not None and players is not None:
        raise DesignError("a coded design has candidates or players, not both; a candidate is a player of one.")
    if candidates is not None and (
        list(candidates) != sorted(set(candidates)) or not all(0 <= i < n for i in candidates)
    ):
        raise DesignError(f"candidates must be different component numbers from 0 to {n - 1}, ascending.")
    inside = [i for group in players or () for i in group]
    if not all(players or ((0,),)) or len(set(inside)) < len(inside) or not all(0 <= i < n for i in inside):
        raise DesignError(f"players must be disjoint groups of at least one component number from 0 to {n - 1} each.")
    coded = n if candidates is None else len(candidates)
    coded = coded if players is None else len(players)
    if coded != code.n or n_masks < code.size:
        raise DesignError(
            f"a code of {code.size:,} masks over {code.n:,} players does not fit {n_masks:,} masks over {coded:,}."
        )
