"""Do the constants that decide what is decoded matter? Each is halved and doubled, on functions that stay the same."""

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from spex_mech.bench.functions import Kind, Planted, planted_function, support_f1
from spex_mech.bench.timing import machine
from spex_mech.store.responses import Responses
from spex_mech.walsh.decoders.proxyspex import ProxySpex
from spex_mech.walsh.decoding import Decoder, Samples, r_squared
from spex_mech.walsh.joint.joint import Joint
from spex_mech.walsh.link.linked import Linked
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spex.spex import Spex

Row = dict[str, Any]
FACTORS = (0.5, 2.0)
FRESH = 2048
# (decoder, module of spex_mech.walsh, name)
CONSTANTS: tuple[tuple[str, str, str], ...] = (
    ("joint", "joint.stack", "_POWER"), ("joint", "joint.stack", "_SURE"), ("joint", "joint.stack", "_SMALL"),
    ("joint", "joint.stack", "_MOST"), ("joint", "joint.stack_polynomial", "LOST"),
    ("joint", "decoders.screening", "NORMAL"), ("joint", "decoders.pursuit", "_FLOOR"),
    ("joint", "decoders.pursuit", "_AT_LEAST"), ("joint", "decoders.pursuit", "_FALSE_WIDE"),
    ("joint", "decoders.lines_and_trees", "_INNER_FOLDS"), ("joint", "decoders.lines_and_trees", "_PENALTIES"),
    ("joint", "decoders.lasso", "_PATIENCE"), ("joint", "joint.base_learners", "FINE_FOLDS"),
    ("joint", "joint.gaussian", "_HEADLINE"), ("joint", "joint.gaussian", "STEPS_BEFORE_PEAK"),
    ("joint", "joint.closed_form", "_HEIRS"), ("spex", "spex.peeling", "_STANDS_OUT"),
    ("spex", "spex.peeling", "_SHORTER"), ("spex", "spex.peeling", "_TOP"), ("linked", "link.fit", "_SMOOTH"),
    ("linked", "link.fit", "_RIDGE"), ("linked", "link.linked", "_LESS"), ("linked", "link.linked", "_STRONG"),
)  # fmt: skip
# (kind, components, sets, noise, masks, keep-probability; none: coded)
Ask = tuple[Kind, int, int, float, int, float | None]
ASKS: dict[str, tuple[Ask, ...]] = {
    "joint": (("hierarchical", 32, 6, 0.3, 160, 0.5), ("random", 24, 12, 0.2, 256, 0.5),
              ("tanh", 16, 8, 0.1, 128, 0.5), ("hierarchical", 32, 6, 0.2, 256, 0.9)),
    "spex": (("random", 64, 40, 0.5, 2048, None), ("hierarchical", 64, 12, 0.3, 2048, None)),
    "linked": (("tanh", 16, 4, 0.05, 256, 0.5), ("hierarchical", 16, 5, 0.2, 256, 0.5)),
}  # fmt: skip
DECODERS: dict[str, Decoder] = {"joint": Joint(), "spex": Spex(), "linked": Linked(ProxySpex())}


@dataclass(frozen=True, eq=False)
class Trial:
    """Masks that a decoder is given, and fresh ones that it is judged by."""

    name: str
    samples: Samples
    fresh: Bool[Tensor, "fresh component"]
    truth: Float[Tensor, " fresh"]
    planted: Planted | None = None


def run(quick: bool = False, cards: Path | None = None, only: Sequence[str] = ()) -> Row:
    """R² on fresh masks, sets found and coverage with every constant at half, at its value, and doubled.

    Args:
        quick: one constant of each decoder, one function each.
        cards: a folder of cards; half of the saved responses of each are decoded, the others judge.
        only: names of constants, such as ``joint.stack._POWER``; default: all.

    Rows: constant, value (tried), factor, case, r2, f1 (sets found, where the truth is known), coverage (share of the
    coefficients of found sets within two standard errors of the truth). The summary has a line a constant and factor:
    the mean and the worst change of R², and the mean changes of f1 and coverage, from the constant as it is.
    """
    chosen = [c for c in CONSTANTS if not only or f"{c[1]}.{c[2]}" in only]
    chosen = list({c[0]: c for c in chosen}.values()) if quick else chosen
    rows = list[Row]()
    for decoder in dict.fromkeys(decoder for decoder, _, _ in chosen):
        trials = [_planted(ask) for ask in ASKS[decoder][: 1 if quick else None]]
        trials += list(_of_cards(cards)) if decoder == "joint" and cards is not None else []
        as_is = [_measured(DECODERS[decoder], trial) for trial in trials]
        for _, module, name in (c for c in chosen if c[0] == decoder):
            for factor in FACTORS:
                with scaled(f"spex_mech.walsh.{module}", name, factor) as value:
                    tried = [_measured(DECODERS[decoder], trial) for trial in trials]
                told = {"constant": f"{module}.{name}", "value": value, "factor": factor}
                rows += [told | now | {"before": before} for now, before in zip(tried, as_is, strict=True)]
    return {"machine": machine("cpu"), "rows": rows, "summary": _summary(rows)}


@contextmanager
def scaled(module: str, name: str, factor: float) -> Iterator[float]:
    """A constant times a factor, wherever it was imported to; whole numbers stay whole and above 0."""
    value = getattr(import_module(module), name)
    changed = max(1, round(value * factor)) if isinstance(value, int) else value * factor
    homes = [module] if name.startswith("_") else [m for m in sys.modules if m.startswith("spex_mech.walsh")]
    users = [sys.modules[home] for home in homes if getattr(sys.modules[home], name, None) is value]
    try:
        for user in users:
            setattr(user, name, changed)
        yield changed
    finally:
        for user in users:
            setattr(user, name, value)


def _planted(ask: Ask) -> Trial:
    kind, n, sets, noise, masks, keep_prob = ask
    function = planted_function(kind, n, sets=sets, seed=1)
    if keep_prob is None:
        design, probability = MaskDesign.coded(n, 4, masks, seed=3), 0.5
    else:
        design, probability = MaskDesign.bernoulli(n, masks, keep_prob, seed=3), keep_prob
    keep, fresh = design.keep(), MaskDesign.bernoulli(n, FRESH, probability, seed=2).keep()
    values = function.noisy(keep, noise, 4)[:, None].float()
    name = f"{kind}, n = {n}, {'coded' if keep_prob is None else f'keep {keep_prob}'}"
    return Trial(name, Samples(keep, values, design), fresh, function(fresh), function)


def _of_cards(cards: Path) -> Iterator[Trial]:
    for folder in sorted(cards.iterdir()):
        if (folder / "responses.safetensors").is_file():
            saved = Responses.load(folder / "responses.safetensors")
            half = len(saved.keep) // 2
            fresh = slice(half, 2 * half)
            truth = saved.values[fresh].double().mean(1)
            if float(truth.var(correction=0)) > 0:
                yield Trial(folder.name, Samples(saved.keep[:half], saved.values[:half]), saved.keep[fresh], truth)


def _measured(decoder: Decoder, trial: Trial) -> Row:
    decoded = decoder.decode(trial.samples, seed=0)
    row: Row = {"case": trial.name, "r2": r_squared(trial.truth, decoded.predict(trial.fresh))}
    if trial.planted is None or trial.planted.link is not None:
        return row
    found, known = decoded.spectrum.mean_output(), trial.planted.spectrum.rewrite(decoded.spectrum.basis)
    row["f1"] = support_f1({s for s, c in known.terms() if s and c}, set(found.sets))
    if found.stderr is not None:
        errors = zip(found.terms(), found.stderr.tolist(), strict=True)
        near = [abs(c - (known.get(s) or 0.0)) <= 2 * error for (s, c), error in errors if s]
        row["coverage"] = sum(near) / len(near) if near else float("nan")
    return row


def _summary(rows: Iterable[Row]) -> list[Row]:
    lines: dict[tuple[str, float], list[Row]] = {}
    for row in rows:
        lines.setdefault((row["constant"], row["value"]), []).append(row)
    return [
        {"constant": constant, "value": value}
        | {f"{what} change": _mean(_changes(some, what)) for what in ("r2", "f1", "coverage")}
        | {"worst r2 change": min(_changes(some, "r2"))}
        for (constant, value), some in lines.items()
    ]


def _changes(rows: Iterable[Row], what: str) -> list[float]:
    return [row[what] - row["before"][what] for row in rows if what in row and what in row["before"]]


def _mean(numbers: Sequence[float]) -> float | None:
    return sum(numbers) / len(numbers) if numbers else None
