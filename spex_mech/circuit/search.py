"""The search for good sets of components on a polynomial: one at a time from either end, then swaps.

A `Game` is the polynomial over the components that occur in it. With ``φ(k)`` for a keep bit k and ``w_S`` the value of
term S now, flipping component i changes f by ``(r_i - 1) Σ_{S∋i} w_S``, where r_i is the ratio of φ after to before;
flipping i and j by both changes and ``(r_i - 1)(r_j - 1) Σ_{S∋i,j} w_S``. So one sparse product prices every move.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from spex_mech.walsh.spectrum import Basis, Spectrum

MAX_PAIRS = 1 << 22  # swaps that are priced at once; beyond, those of the most promising components
MAX_MOVES = 500  # improvements of one set; each is the best of all moves, so far fewer are usual
_ROUNDING = 1e-11  # of the sum of |coefficients|: scores nearer than this are the same

Values = NDArray[np.float64]
KeepRows = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Game:
    """``f(kept) = constant + Σ_S coefficient_S Π_{i∈S} φ(kept_i)`` over the components in use, and what is wanted.

    `member` is ``[set, used]``; `used` says which component each column is.
    """

    used: tuple[int, ...]
    member: csr_array
    coefficient: Values
    constant: float
    phi: tuple[float, float]
    aim: str

    @property
    def orders(self) -> Values:
        return np.diff(self.member.indptr).astype(np.float64)

    @property
    def tolerance(self) -> float:
        """Scores that differ by less are the same."""
        return _ROUNDING * max(1e-300, abs(self.constant) + float(np.abs(self.coefficient).sum()))

    @property
    def intact(self) -> float:
        return self.value(np.ones(len(self.used), dtype=np.bool_))

    @property
    def empty(self) -> float:
        return self.value(np.zeros(len(self.used), dtype=np.bool_))

    def terms(self, kept: KeepRows) -> Values:
        """The value of every term; counted anew each time, so that no rounding builds up."""
        count = self.member @ kept.astype(np.float64)
        low, high = self.phi
        return self.coefficient * high**count * low ** (self.orders - count)

    def value(self, kept: KeepRows) -> float:
        """f with these kept."""
        return self.constant + float(self.terms(kept).sum())

    def score(self, value: float) -> float:
        """What is to be made as large as possible."""
        return float(self.scores(np.array(value)))

    def scores(self, values: Values) -> Values:
        """`score` of many values."""
        if self.aim == "preserve":
            return -np.abs(values - self.intact)
        return values if self.aim == "raise" else -values

    def better(self, one: KeepRows, other: KeepRows) -> bool:
        """Whether `one` is the better set: by score, then by fewer components."""
        ahead = self.score(self.value(one)) - self.score(self.value(other))
        return ahead > self.tolerance or (abs(ahead) <= self.tolerance and one.sum() < other.sum())

    def rises(self, kept: KeepRows) -> Values:
        """r_i - 1 of every component, if it were flipped."""
        low, high = self.phi
        return np.where(kept, low / high - 1, high / low - 1)

    def changes(self, kept: KeepRows) -> Values:
        """By how much f changes if one component is flipped, for every component."""
        return self.rises(kept) * (self.member.T @ self.terms(kept))


def play(spectrum: Spectrum, aim: str) -> Game:
    """The game of a polynomial. A basis with a zero in it (Möbius, knockout) is rewritten, which is exact."""
    mean = spectrum.mean_output()
    mean = mean if mean.basis.is_orthonormal else mean.rewrite(Basis())
    size = max((abs(c) for s, c in mean.terms() if s), default=0.0)
    terms = [(s, c) for s, c in mean.terms() if s and abs(c) > 1e-14 * size]
    used = tuple(sorted({i for s, _ in terms for i in s}))
    column = {i: j for j, i in enumerate(used)}
    indices = np.array([column[i] for s, _ in terms for i in s], dtype=np.int64)
    starts = np.cumsum([0, *(len(s) for s, _ in terms)])
    member = csr_array((np.ones(len(indices)), indices, starts), shape=(len(terms), len(used)))
    offset, slope = mean.basis.affine
    coefficient = np.array([c for _, c in terms], dtype=np.float64)
    return Game(used, member, coefficient, mean.get(()) or 0.0, (offset, offset + slope), aim)


@dataclass(frozen=True, eq=False)
class Chain:
    """Nested sets, the k-th being the first k of `order`; `scores` are theirs, from none on."""

    order: tuple[int, ...]
    scores: Values

    def best(self, game: Game, size: int) -> KeepRows:
        """The best set of the chain with at most `size` components, the smallest of equally good ones."""
        scores = self.scores[: size + 1]
        length = int(np.flatnonzero(scores >= scores.max() - game.tolerance)[0])
        kept = np.zeros(len(game.used), dtype=np.bool_)
        kept[list(self.order[:length])] = True
        return kept


def forward(game: Game, size: int) -> Chain:
    """From nothing, the best component added one at a time, up to `size`."""
    kept = np.zeros(len(game.used), dtype=np.bool_)
    order, values = list[int](), [game.empty]
    for _ in range(min(size, len(game.used))):
        changes = game.changes(kept)
        chosen = _first_best(game, game.scores(values[-1] + changes), ~kept)
        kept[chosen] = True
        order.append(chosen)
        values.append(values[-1] + float(changes[chosen]))
    return Chain(tuple(order), game.scores(np.array(values)))


def backward(game: Game) -> Chain:
    """From the intact model, the component that is missed least taken away one at a time, until none is left."""
    kept = np.ones(len(game.used), dtype=np.bool_)
    order, values = list[int](), [game.intact]
    for _ in game.used:
        changes = game.changes(kept)
        chosen = _last_best(game, game.scores(values[-1] + changes), kept)
        kept[chosen] = False
        order.append(chosen)
        values.append(values[-1] + float(changes[chosen]))
    return Chain(tuple(order[::-1]), game.scores(np.array(values[::-1])))


def polish(game: Game, kept: KeepRows, size: int) -> KeepRows:
    """Add, take away or swap, always the best of all moves, until none helps."""
    kept = kept.copy()
    for _ in range(MAX_MOVES):
        move = _best_move(game, kept, size)
        if not move:
            break
        kept[move] = ~kept[move]
    return kept


def settle(game: Game, kept: KeepRows) -> KeepRows:
    """An equally good set without idle components, then with earlier ones in place of later ones where that is equal.

    So ties are decided by the components' order and not by the way the set was found.
    """
    kept = kept.copy()
    for i in np.flatnonzero(kept)[::-1]:
        without = kept.copy()
        without[i] = False
        if game.score(game.value(without)) >= game.score(game.value(kept)) - game.tolerance:
            kept = without
    for i in np.flatnonzero(kept)[::-1]:
        scores, outside = _swaps(game, kept, np.array([i]), np.flatnonzero(~kept))
        equal = outside[scores[0] >= game.score(game.value(kept)) - game.tolerance] if len(outside) else outside
        if len(equal) and equal[0] < i:
            kept[[i, equal[0]]] = [False, True]
    return kept


def _best_move(game: Game, kept: KeepRows, size: int) -> list[int]:
    """The components to flip for the largest gain; none where there is no gain."""
    value = game.value(kept)
    floor = game.score(value) + game.tolerance
    singles = game.scores(value + game.changes(kept))
    allowed = kept | (int(kept.sum()) < size)
    single = _first_best(game, singles, allowed)
    moves = [(float(singles[single]), [single])] if allowed.any() else []
    inside, outside = _promising(singles, np.flatnonzero(kept), np.flatnonzero(~kept))
    if len(inside) and len(outside):
        scores, _ = _swaps(game, kept, inside, outside)
        row, column = divmod(int((scores >= scores.max() - game.tolerance).argmax()), len(outside))
        moves.append((float(scores[row, column]), [int(inside[row]), int(outside[column])]))
    moves = [move for move in moves if move[0] > floor]
    return max(moves, key=lambda move: move[0])[1] if moves else []


def _swaps(
    game: Game, kept: KeepRows, inside: NDArray[np.intp], outside: NDArray[np.intp]
) -> tuple[Values, NDArray[np.intp]]:
    """The score after every swap ``[inside, outside]``."""
    terms, rises, changes = game.terms(kept), game.rises(kept), game.changes(kept)
    weighted = game.member[:, inside].multiply(terms[:, None]).tocsr()
    both = (weighted.T @ game.member[:, outside]).toarray()
    pairs = rises[inside][:, None] * rises[outside] * both
    return game.scores(game.value(kept) + changes[inside][:, None] + changes[outside] + pairs), outside


def _promising(
    scores: Values, inside: NDArray[np.intp], outside: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """All components, or where the pairs would be too many those that score best on their own."""
    if len(inside) * len(outside) <= MAX_PAIRS:
        return inside, outside
    most = max(1, int(MAX_PAIRS**0.5))
    rows, columns = (np.sort(part[np.argsort(-scores[part], kind="stable")[:most]]) for part in (inside, outside))
    return rows, columns


def _first_best(game: Game, scores: Values, allowed: KeepRows) -> int:
    open_scores = np.where(allowed, scores, -np.inf)
    return int((open_scores >= open_scores.max() - game.tolerance).argmax())


def _last_best(game: Game, scores: Values, allowed: KeepRows) -> int:
    """The last of the best: what is taken away from equals is the later one."""
    return len(scores) - 1 - _first_best(game, scores[::-1], allowed[::-1])
