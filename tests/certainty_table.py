"""The table of docs/explain/errors.md: `python tests/certainty_table.py [DRAWS]`, some twenty seconds a draw and row.

What the joint decoder confirms of planted functions, beside least squares on single components; not a test.
"""

import sys

import numpy as np
import torch
from scipy.stats import false_discovery_control
from scipy.stats import t as student

from spex_mech.walsh.certainty.weigh import weigh
from spex_mech.walsh.decoding import Samples
from spex_mech.walsh.joint.joint import Joint
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.set_rows import pad_sets
from spex_mech.walsh.spectrum import Basis, Spectrum, monomials

ROWS = (  # function, components, masks, keep-probability, noise over signal
    ("additive", 12, 128, 0.9, 0.3), ("additive", 12, 128, 0.5, 1.0), ("additive", 60, 256, 0.5, 1.0),
    ("sparse", 30, 512, 0.5, 0.5), ("hierarchical", 20, 256, 0.5, 0.5), ("hierarchical", 30, 512, 0.9, 0.3),
    ("hierarchical", 12, 48, 0.5, 0.3),
)  # fmt: skip


def planted(kind, n, rng, keep_prob):
    """A function of the kind, in the basis of the masks."""
    sets = {}
    if kind == "additive":
        sets = {(i,): rng.normal() for i in range(n)}
    elif kind == "sparse":
        for _ in range(12):
            order = rng.choice([1, 1, 2, 2, 3])
            sets[tuple(sorted(rng.choice(n, order, replace=False)))] = rng.normal()
    else:
        for _ in range(6):
            order = rng.choice([1, 2, 3])
            top, value = sorted(rng.choice(n, order, replace=False)), rng.normal()
            for code in range(1, 1 << order):
                part = tuple(x for i, x in enumerate(top) if code >> i & 1)
                sets[part] = sets.get(part, 0) + value
    values = torch.tensor([0.0, *sets.values()], dtype=torch.float64)
    return Spectrum(n, pad_sets([(), *sets]), values).rewrite(Basis.orthonormal(keep_prob))


def draw(kind, n, masks, keep_prob, noise, seed):
    """(true effects, confirmed ones with coefficient, error and truth, single components least squares confirms)."""
    rng = np.random.default_rng(seed + 7777)
    truth, design = planted(kind, n, rng, keep_prob), MaskDesign.bernoulli(n, masks, keep_prob, seed)
    terms, keep = {s: value for s, value in truth.terms() if s}, design.keep()
    spread = sum(value**2 for value in terms.values()) ** 0.5
    values = truth.evaluate(keep) + noise * spread * torch.from_numpy(rng.normal(size=masks))
    samples = Samples(keep, values[:, None].float(), design)
    sure = weigh(samples, Joint(), Joint().decode(samples, seed=0), seed=0)
    rows = zip(sure.spectrum.terms(), sure.spectrum.stderr.tolist(), strict=True)
    claimed = {s: (c, e, terms.get(s, 0.0)) for (s, c), e in rows if s and sure.q_value.get(s, 1.0) <= 0.05}
    singles = monomials(keep, pad_sets([(), *((i,) for i in range(n))]), truth.basis).numpy()
    solved = np.linalg.lstsq(singles, values.numpy(), rcond=None)[0]
    left, freedom = values.numpy() - singles @ solved, masks - n - 1
    error = np.sqrt(np.diag(np.linalg.inv(singles.T @ singles)) * (left @ left) / freedom)
    q = false_discovery_control(2 * student.sf(np.abs(solved / error)[1:], freedom))
    floor = 0.05 * max(map(abs, terms.values()))
    return {s for s, value in terms.items() if abs(value) >= floor}, claimed, {(i,) for i in np.flatnonzero(q <= 0.05)}


def main(draws):
    for row in ROWS:
        found = [draw(*row, seed) for seed in range(draws)]
        wanted, good = sum(len(real) for real, _, _ in found), sum(len(real & set(c)) for real, c, _ in found)
        singles = [{s for s in real if len(s) == 1} for real, _, _ in found]
        ours = sum(len(one & set(c)) for one, (_, c, _) in zip(singles, found, strict=True))
        theirs = sum(len(one & ols) for one, (_, _, ols) in zip(singles, found, strict=True))
        z = np.array([(c - t) / e for _, claimed, _ in found for c, e, t in claimed.values()])
        false = sum(t == 0 for _, claimed, _ in found for _, _, t in claimed.values())
        told = f"{good} of {wanted}, mains {ours} / {theirs}, false {false}"
        rms = np.sqrt(np.square(z).mean()) if len(z) else np.nan
        print(*row, told, f"rms {rms:.2f} cover {(np.abs(z) < 1.97).mean():.3f}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 6)
