"""Draw the pictures of the documentation: ``python examples/make_pictures.py docs/pictures``.

Every picture is computed, none is drawn by hand: masks are drawn, functions evaluated, decoders run.
"""

import math
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure

from spex_mech.walsh.decoders.exact import Exact
from spex_mech.walsh.decoders.linear import Linear
from spex_mech.walsh.decoders.proxyspex import ProxySpex
from spex_mech.walsh.decoding import Samples
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Basis, Spectrum
from spex_mech.walsh.transform import walsh_hadamard

HELPS, HINDERS, PLAIN, FAINT = "#009E73", "#CC79A7", "#56729c", "#b8c2d0"


def datum() -> Figure:
    """The life of a datum: what each pass takes and gives."""
    steps = (
        ("model\nprompts, metric", "bind, Task", "ablation, tasks"),
        ("masks", "keep [mask, component]", "walsh.masks"),
        ("ablated passes", "values [mask, prompt]", "ablation"),
        ("responses", "saved to disk", "store"),
        ("polynomial", "sets, coefficients ± s.e.", "walsh"),
        ("circuit", "nodes, signed hyperedges", "circuit"),
        ("audit", "fresh masks only", "auditing"),
    )
    figure = Figure(figsize=(8.6, 2.5))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 4 * 2.15), ylim=(0, 2.5))
    axes.axis("off")
    for number, (title, what, where) in enumerate(steps):
        line, column = divmod(number, 4)
        x, y = 0.1 + 2.15 * column, 1.45 - 1.25 * line
        colour = {0: FAINT, 3: HELPS}.get(number, PLAIN)
        axes.add_patch(mpl.patches.FancyBboxPatch((x, y), 1.65, 0.8, "round,pad=0.02", fc="none", ec=colour, lw=1.6))
        axes.text(x + 0.82, y + 0.56, title, ha="center", va="center", weight="bold", size=9)
        axes.text(x + 0.82, y + 0.28, what, ha="center", va="center", size=7.5)
        axes.text(x + 0.82, y + 0.1, where, ha="center", va="center", size=7, color=PLAIN, style="italic")
        if number < len(steps) - 1:
            arrow = {"arrowstyle": "->", "color": PLAIN, "lw": 1.2, "shrinkA": 0, "shrinkB": 0}
            if column < 3:
                axes.annotate("", (x + 2.1, y + 0.4), (x + 1.72, y + 0.4), arrowprops=arrow)
                continue
            axes.plot((x + 0.82, x + 0.82, 0.92), (y - 0.04, 1.22, 1.22), color=PLAIN, lw=1.2)
            axes.annotate("", (0.92, 1.05), (0.92, 1.23), arrowprops=arrow)
    return figure


def bins() -> Figure:
    """SPEX: a sparse spectrum, hashed into bins by masks that share a code; bins with one set are read."""
    n, b = 8, 3
    sets = {(1,): 1.0, (4, 6): -0.8, (0, 2, 5): 0.7, (3, 7): 0.5, (2, 3, 6): -0.6}
    function = Spectrum.from_terms(n, sets)
    generator = torch.Generator().manual_seed(4)
    matrix = torch.randint(0, 2, (n, b), generator=generator)
    codes = (torch.arange(2**b)[:, None] >> torch.arange(b)) & 1
    ablated = (codes @ matrix.T) % 2
    energy = walsh_hadamard(function.evaluate(ablated == 0)) / 2**b
    home = {members: int(sum(int(matrix[list(members), j].sum() % 2) << j for j in range(b))) for members in sets}
    held = {i: [m for m, where in home.items() if where == i] for i in range(2**b)}
    whole = walsh_hadamard(function.evaluate(MaskDesign.complete(n).keep())) / 2**n

    figure = Figure(figsize=(8.6, 2.9))
    left, right = figure.subplots(1, 2)
    left.stem(whole.numpy(), linefmt=PLAIN, markerfmt=" ", basefmt=FAINT)
    left.set(title="all 256 coefficients: five are not zero", xlabel="set of components (number)")
    names = {0: FAINT, 1: HELPS}
    for i, value in enumerate(energy.tolist()):
        right.bar(i, value, color=names.get(len(held[i]), HINDERS))
        label = "\n".join("{" + ",".join(map(str, m)) + "}" for m in held[i])
        right.text(
            i, value + math.copysign(0.06, value), label, ha="center", va="bottom" if value > 0 else "top", size=7
        )
    right.axhline(0, color=FAINT, lw=0.8)
    right.set(title="the same, hashed into 8 bins by 8 masks", xlabel="bin", ylim=(-1.3, 1.5))
    for colour, what in ((HELPS, "one set: read"), (HINDERS, "several: wait")):
        right.bar(0, 0, color=colour, label=what)
    right.legend(frameon=False, fontsize=8, loc="lower right")
    return _plain(figure)


def tree() -> Figure:
    """ProxySPEX: a tree that asks three questions is a polynomial of five sets, exactly."""
    keep = MaskDesign.complete(3).keep()
    leaves = torch.where(keep[:, 0], torch.where(keep[:, 1], 4.0, 1.0), torch.where(keep[:, 2], 2.0, 0.0))
    spectrum = Exact().decode(Samples(keep, leaves[:, None].float(), MaskDesign.complete(3)), seed=0).spectrum
    figure = Figure(figsize=(8.6, 2.9))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    left.axis("off")
    places = {"0 kept?": (0.5, 0.9), "1 kept?": (0.25, 0.5), "2 kept?": (0.75, 0.5)}
    ends = {(0.1, 0.1): "4", (0.4, 0.1): "1", (0.6, 0.1): "2", (0.9, 0.1): "0"}
    for (x, y), (u, v), word in (
        ((0.5, 0.9), (0.25, 0.5), "yes"), ((0.5, 0.9), (0.75, 0.5), "no"), ((0.25, 0.5), (0.1, 0.1), "yes"),
        ((0.25, 0.5), (0.4, 0.1), "no"), ((0.75, 0.5), (0.6, 0.1), "yes"), ((0.75, 0.5), (0.9, 0.1), "no"),
    ):  # fmt: skip
        left.plot((x, u), (y, v), color=FAINT, lw=1.2, zorder=0)
        left.text((x + u) / 2, (y + v) / 2, word, size=7, ha="center", va="center", color=PLAIN)
    for text, (x, y) in places.items():
        left.text(x, y, text, ha="center", va="center", size=9, bbox={"fc": "white", "ec": PLAIN, "boxstyle": "round"})
    for (x, y), text in ends.items():
        left.text(x, y, text, ha="center", va="center", size=9, bbox={"fc": "white", "ec": HELPS, "boxstyle": "round"})
    terms = sorted(((m, v) for m, v in spectrum.terms() if m and abs(v) > 1e-9), key=lambda t: (len(t[0]), t[0]))
    labels = ["{" + ",".join(map(str, m)) + "}" for m, _ in terms]
    right.bar(labels, [v for _, v in terms], color=[HELPS if v > 0 else HINDERS for _, v in terms])
    right.axhline(0, color=FAINT, lw=0.8)
    right.set(title="its Walsh coefficients: subsets of its paths, no others", xlabel="set of components")
    left.set_title("a tree over three components")
    return _plain(figure)


def masks_needed() -> Figure:
    """R² on fresh masks by number of masks, on hierarchical functions with noise; the middle one of three."""
    budgets, methods = (64, 128, 256, 512, 1024), {"a line (linear)": Linear(), "ProxySPEX": ProxySpex()}
    figure = Figure(figsize=(5.6, 3.1))
    axes = figure.subplots()
    fresh = MaskDesign.bernoulli(24, 2000, 0.5, seed=99).keep()
    for (name, decoder), colour in zip(methods.items(), (FAINT, HELPS), strict=True):
        reached = []
        for masks in budgets:
            scores = [_fresh_r2(decoder, seed, masks, fresh) for seed in range(3)]
            reached.append(sorted(scores)[1])
        axes.plot(budgets, reached, "o-", color=colour, label=name)
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="masks", ylabel="R² on 2,000 fresh masks")
    axes.set_xticks(budgets, [f"{b:,}" for b in budgets])
    axes.set_title("five ANDs of one to four of 24 components", size=10)
    axes.legend(frameon=False, loc="lower right")
    return _plain(figure)


def _fresh_r2(decoder: Any, seed: int, masks: int, fresh: torch.Tensor) -> float:
    generator = torch.Generator().manual_seed(seed)
    sizes = (1, 2, 2, 3, 4)
    terms = {tuple(sorted(torch.randperm(24, generator=generator)[:size].tolist())): 1.0 for size in sizes}
    function = Spectrum.from_terms(24, terms, Basis("mobius"))
    design = MaskDesign.bernoulli(24, masks, 0.5, seed=seed)
    values = function.evaluate(design.keep())
    values = values + 0.1 * values.std() * torch.randn(values.shape, generator=generator, dtype=values.dtype)
    decoded = decoder.decode(Samples(design.keep(), values[:, None].float(), design), seed=0)
    true = function.evaluate(fresh)
    return float(1 - (true - decoded.predict(fresh)).square().sum() / (true - true.mean()).square().sum())


def rare() -> Figure:
    """How many of 1,000 masks ablate a given set of one, two, three components together, by keep-probability."""
    q = torch.linspace(0.3, 0.99, 200)
    figure = Figure(figsize=(5.6, 3.1))
    axes = figure.subplots()
    for size, colour in ((1, PLAIN), (2, HELPS), (3, HINDERS)):
        axes.plot(q, 1000 * (1 - q) ** size, color=colour, label=f"{size} component{'s' * (size > 1)}")
    axes.set(yscale="log", ylim=(0.1, 1000), xlabel="keep-probability", ylabel="of 1,000 masks")
    axes.set_title("masks in which all of a set are ablated", size=10)
    axes.legend(frameon=False)
    return _plain(figure)


def signs() -> Figure:
    """AND, OR, XOR and a sum of two components, in the Walsh and the knockout basis."""
    functions = {"AND": {(0, 1): 1.0}, "OR": {(0,): 1.0, (1,): 1.0, (0, 1): -1.0}}
    functions |= {"XOR": {(0,): 1.0, (1,): 1.0, (0, 1): -2.0}, "sum": {(0,): 1.0, (1,): 1.0}}
    figure = Figure(figsize=(8.6, 2.6))
    for axes, basis in zip(figure.subplots(1, 2, sharey=False), ("walsh", "knockout"), strict=True):
        for place, terms in enumerate(functions.values()):
            spectrum = Spectrum.from_terms(2, terms, Basis("mobius")).rewrite(Basis(basis))
            for shift, members in ((-0.25, (0,)), (0.0, (1,)), (0.25, (0, 1))):
                value = spectrum.get(members) or 0.0
                colour = PLAIN if len(members) == 1 else HELPS if value > 0 else HINDERS
                axes.bar(place + shift, value, 0.22, color=colour)
        axes.axhline(0, color=FAINT, lw=0.8)
        axes.set_xticks(range(4), list(functions))
        axes.set_title(f"{basis}: each alone, each alone, the pair", size=10)
    return _plain(figure)


def _plain(figure: Figure) -> Figure:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_size(10)
    figure.tight_layout()
    return figure


PICTURES = {
    "datum": datum, "spex-bins": bins, "proxyspex-tree": tree, "proxyspex-masks": masks_needed,
    "keep-probability": rare, "signs": signs,
}  # fmt: skip


def main(folder: str) -> None:
    """Write every picture as SVG; the same bits each time for the same versions."""
    where = Path(folder)
    where.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.hashsalt": "spex_mech", "svg.fonttype": "none", "font.family": "sans-serif"}):
        for name, draw in PICTURES.items():
            draw().savefig(where / f"{name}.svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main(*sys.argv[1:])
