"""Figures of a circuit, for papers and notebooks. Figures are returned, never shown; no global plot state is
touched."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spex_mech.circuit.graph import Circuit
from spex_mech.circuit.nodes import Interaction
from spex_mech.components import Component
from spex_mech.errors import SpexMechError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PLOT_COLOURS = {"synergy": "#009E73", "redundancy": "#CC79A7", "main": "#56729c"}  # told apart by colour-blind readers


def circuit(circuit: Circuit, max_interactions: int = 40) -> "Figure":
    """The circuit by layer: heads are circles, MLPs and neurons squares, filled by main effect; edges are joint
    effects.

    A pair is a curve; a set of three and more a small hub with spokes; width goes with the size of the coefficient.

    Raises `SpexMechError` where matplotlib is not installed or the circuit has no node.
    """
    figure_type, normalise, colours = _matplotlib()
    if not circuit.nodes:
        raise SpexMechError("this circuit has no node to draw: nothing was found in the responses.")
    places = _places(circuit)
    width = max(x for x, _ in places.values()) - min(x for x, _ in places.values())
    figure = figure_type(figsize=(min(16, max(6, 1.6 + 0.9 * width)), 1.8 + 1.5 * len({y for _, y in places.values()})))
    axes = figure.add_subplot()
    joint = [i for i in circuit.interactions if i.order > 1][:max_interactions]
    largest = max((abs(i.coefficient) for i in joint), default=1.0)
    for number, interaction in enumerate(reversed(joint)):
        _draw(axes, interaction, places, 0.6 + 4.4 * abs(interaction.coefficient) / largest, number)
    _draw_nodes(figure, axes, circuit, places, normalise, colours)
    _finish(axes, circuit, places, joint)
    figure.tight_layout()
    return figure


def spectrum(circuit: Circuit, top: int = 20) -> "Figure":
    """Left: Σ F(S)² by order, what each order explains. Right: the strongest interactions with two standard errors."""
    figure_type, _, _ = _matplotlib()
    shown = list(circuit.interactions[:top])
    if not shown:
        raise SpexMechError("this circuit has no interaction to plot: nothing was found in the responses.")
    figure = figure_type(figsize=(9, max(3, 0.8 + 0.27 * len(shown))))
    left, right = figure.subplots(1, 2, width_ratios=(1, 2.4))
    total = sum(circuit.energy.values()) or 1.0
    left.bar([str(order) for order in circuit.energy], [e / total for e in circuit.energy.values()], color="#56729c")
    left.set(xlabel="order", ylabel="share of the variance", title="energy by order", ylim=(0, 1))
    rows = range(len(shown))
    right.barh(
        rows,
        [i.coefficient for i in shown],
        xerr=[2 * (i.stderr or 0.0) for i in shown],
        color=[PLOT_COLOURS[i.kind] for i in shown],
        error_kw={"elinewidth": 1},
    )
    right.set_yticks(rows, [i.label for i in shown], fontsize=8)
    right.invert_yaxis()
    right.axvline(0, color="black", linewidth=0.8)
    right.set(xlabel=f"coefficient ({circuit.unit}), ± 2 s.e.", title="strongest interactions")
    _legend(right, {i.kind for i in shown})
    figure.tight_layout()
    return figure


def predictions(measured: Sequence[float], predicted: Sequence[float], unit: str) -> "Figure":
    """Predicted against measured values, a point a mask; on the line they agree.

    Args:
        measured, predicted: of the same masks, in `unit`: ``audit.fresh.measured`` and ``.predicted``, or what
            ``found.record["heldout"]`` holds.

    Raises `SpexMechError` where there are no values, or not as many of each.
    """
    figure_type, _, _ = _matplotlib()
    if not measured or len(measured) != len(predicted):
        raise SpexMechError(
            f"{len(measured)} measured and {len(predicted)} predicted values were given; as many of each are "
            "needed, one at least."
        )
    figure = figure_type(figsize=(4, 4))
    axes = figure.add_subplot()
    ends = (min(*measured, *predicted), max(*measured, *predicted))
    axes.plot(ends, ends, color="#555555", linewidth=0.8, linestyle="--")
    axes.scatter(measured, predicted, s=10, color=PLOT_COLOURS["main"], alpha=0.6, linewidths=0)
    axes.set(xlabel=f"measured ({unit})", ylabel=f"predicted ({unit})", title=f"{len(measured):,} masks")
    figure.tight_layout()
    return figure


def faithfulness(sizes: "pd.DataFrame") -> "Figure":
    """Faithfulness over the number of components kept: the sets that preserve, that help, and random ones ± 1 s.d.

    `sizes` is ``audit.sizes_frame()``. Raises `SpexMechError` on a frame without its columns or rows.
    """
    figure_type, _, _ = _matplotlib()
    missing = [name for name in ("count", "preserve", "help", "random_mean", "random_std") if name not in sizes]
    if missing or not len(sizes):
        raise SpexMechError(
            f"a frame of {len(sizes)} rows without {', '.join(missing) or 'any row'} was given; "
            "give audit.sizes_frame()."
        )
    rows = sizes.drop_duplicates("count").sort_values("count")
    figure = figure_type(figsize=(5, 3.6))
    axes = figure.add_subplot()
    for level in (0.0, 1.0):
        axes.axhline(level, color="#555555", linewidth=0.8, linestyle="--")
    known = rows.dropna(subset="random_mean")
    if len(known):
        axes.errorbar(known["count"], known["random_mean"], known["random_std"], color="#777777", marker="^",
                      linestyle=":", label="random")  # fmt: skip
    axes.plot(rows["count"], rows["help"], color="#D55E00", marker="s", linestyle="--", label="raise")
    axes.plot(rows["count"], rows["preserve"], color="#0072B2", marker="o", label="preserve")
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xticks(rows["count"], [f"{count:,}" for count in rows["count"]])
    axes.minorticks_off()
    axes.set(xlabel="components kept", ylabel="faithfulness")
    axes.legend(fontsize=8, frameon=False)
    figure.tight_layout()
    return figure


def _matplotlib() -> tuple[type["Figure"], Any, Any]:
    try:
        from matplotlib import colormaps
        from matplotlib.colors import TwoSlopeNorm
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SpexMechError('figures need matplotlib: pip install "spex-mech[plot]".') from error
    return Figure, TwoSlopeNorm, colormaps["RdBu"]


def _places(circuit: Circuit) -> dict[str, tuple[float, float]]:
    """Where each node stands: a row a layer (MLPs half a row higher, inputs lowest), evenly spread and centred."""
    rows: dict[float, list[str]] = {}
    for node in circuit.nodes:
        rows.setdefault(_row(node.component), []).append(node.name)
    levels = {row: level for level, row in enumerate(sorted(rows))}
    return {n: (i - (len(ns) - 1) / 2, levels[row]) for row, ns in rows.items() for i, n in enumerate(ns)}


def _draw(
    axes: Any, interaction: Interaction, places: dict[str, tuple[float, float]], width: float, number: int
) -> None:
    colour, points = PLOT_COLOURS[interaction.kind], [places[name] for name in interaction.components]
    if interaction.order == 2:
        same_row = points[0][1] == points[1][1]
        bend = (0.35 if same_row else 0.12) * (-1 if number % 2 else 1)
        style = {
            "arrowstyle": "-",
            "connectionstyle": f"arc3,rad={bend}",
            "linewidth": width,
            "color": colour,
            "alpha": 0.75,
        }
        axes.annotate("", points[0], points[1], arrowprops=style, zorder=1)
        return
    hub = (
        sum(x for x, _ in points) / len(points) + 0.13 * math.sin(number),
        sum(y for _, y in points) / len(points) + 0.22,
    )
    for x, y in points:
        axes.plot([hub[0], x], [hub[1], y], color=colour, linewidth=width * 0.6, alpha=0.6, zorder=1)
    axes.plot(*hub, marker="o", markersize=4 + width, color=colour, zorder=2)


def _draw_nodes(figure: Any, axes: Any, circuit: Circuit, places: Any, normalise: Any, colours: Any) -> None:
    largest = max((abs(node.main or 0.0) for node in circuit.nodes), default=0.0) or 1.0
    scale = normalise(0.0, -largest, largest)
    small = len(circuit.nodes) > 40
    for round_, marker in ((True, "o"), (False, "s")):
        nodes = [node for node in circuit.nodes if (node.component.kind in ("head", "kv", "attn")) == round_]
        if not nodes:
            continue
        points = [places[node.name] for node in nodes]
        axes.scatter(
            *zip(*points, strict=True), s=160 if small else 620, marker=marker, zorder=3, linewidths=1,
            c=[node.main or 0.0 for node in nodes], cmap=colours, norm=scale, edgecolors="#222222",
        )  # fmt: skip
        for node, (x, y) in zip(nodes, points, strict=True):
            dark = abs(node.main or 0.0) > 0.6 * largest
            axes.text(x, y, node.name, ha="center", va="center", fontsize=4 if small else 7.5, zorder=4,
                      color="white" if dark else "black")  # fmt: skip
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(scale, colours), ax=axes, shrink=0.75, pad=0.02)
    bar.set_label(f"main effect ({circuit.unit})")


def _finish(axes: Any, circuit: Circuit, places: dict[str, tuple[float, float]], joint: list[Interaction]) -> None:
    rows = {y: places_layer for node in circuit.nodes for y, places_layer in [(places[node.name][1], node.component)]}
    axes.set_yticks(sorted(rows), [_row_name(rows[y]) for y in sorted(rows)])
    axes.set_xticks([])
    axes.margins(0.12, 0.3)
    for side in ("top", "right", "bottom", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    total = sum(i.order > 1 for i in circuit.interactions)
    evidence = "" if circuit.heldout_r2 is None else f", held-out R² {circuit.heldout_r2:.3f}"
    axes.set_title(f"{len(circuit.nodes)} components, {len(joint)} of {total} joint effects{evidence}", fontsize=10)
    _legend(axes, {i.kind for i in joint})


def _legend(axes: Any, kinds: set[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=PLOT_COLOURS[kind], linewidth=3, label=kind) for kind in PLOT_COLOURS if kind in kinds
    ]
    if handles:
        axes.legend(handles=handles, loc="best", fontsize=8, frameon=False)


def _row_name(component: Component) -> str:
    if component.is_input:
        return "examples" if component.kind == "example" else "prompt"
    if component.is_labelled:
        return component.label if component.kind == "part" else "adapters"
    return f"{'MLP' if component.is_mlp else 'layer'} {component.layer}"


def _row(component: Component) -> float:
    if component.is_input or component.is_labelled:
        return -1 if component.is_input else 1e9
    return component.layer + 0.5 * component.is_mlp
