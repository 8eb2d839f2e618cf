"""`spex-mech bench`: runs one of the benches, which a clone of the project has and the installed package has not."""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any

from spex_mech.cli import options as o
from spex_mech.cli.terminal import Terminal
from spex_mech.errors import SpexMechError

BENCHES = {  # → its file in spex_mech/bench
    "ablation": "ablation_cost",
    "decode": "decoding_cost",
    "accuracy": "accuracy",
    "players": "players",
    "keep": "keeps",
    "rows": "rows",
    "workers": "ray_throughput",
    "constants": "constants",
}


def bench(
    what: o.Bench,
    device: o.BenchDevice = None,
    json_file: o.BenchJson = None,
    quick: o.Quick = False,
    peer_python: o.PeerPython = None,
    cards: o.BenchCards = None,
    search: o.SearchOption = False,
    budgets: o.Budgets = None,
    out: o.BenchOut = None,
) -> None:
    """Measure the engine or the decoders against floors, neighbours and each other, all in one run."""
    asked = {
        "device": device,
        "quick": quick,
        "peer_python": None if peer_python is None else str(peer_python),
        "cards": cards,
        "search": search,
        "budgets": _numbers_of_masks(budgets),
        "out": out,
    }
    print_bench(run_bench(what, **{name: value for name, value in asked.items() if value}), json_file)


def run_bench(what: str, **asked: Any) -> dict[str, Any]:
    """One of the benches by name: ``{"machine", "rows", "summary"}``.

    Raises `SpexMechError` where there is none of that name, where it takes no such option, or where no bench is here.
    """
    if what not in BENCHES:
        *most, last = BENCHES
        raise SpexMechError(f"there is no bench {what!r}; the benches are {', '.join(most)} and {last}.")
    if find_spec("spex_mech.bench") is None:
        raise SpexMechError(
            f"bench {what!r} was asked for, and the installed package has no benches: they come with the "
            f"project's source. In a clone run `python -m spex_mech.cli bench {what}`; or pip install -e ."
        )
    run = import_module(f"spex_mech.bench.{BENCHES[what]}").run
    unknown = sorted(asked.keys() - signature(run).parameters.keys())
    if unknown:
        taken = ", ".join(_option(name) for name in signature(run).parameters if name in _NAMES)
        raise SpexMechError(f"bench {what!r} takes no {', '.join(map(_option, unknown))}; it takes {taken}.")
    return run(**asked)


_NAMES = ("device", "quick", "peer_python", "cards", "search", "budgets", "out")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _numbers_of_masks(text: str | None) -> tuple[int, ...]:
    """Ascending; none: the bench's own."""
    parts = [] if text is None else text.split(",")
    if not all(part.strip().isdecimal() and int(part) >= 16 for part in parts):
        raise SpexMechError(f"--budgets {text!r} was given; it is numbers of at least 16 masks, such as 64,256,1024.")
    return tuple(sorted({int(part) for part in parts}))


def print_bench(result: Mapping[str, Any], path: Path | None) -> None:
    """The summary of a bench; all rows go to a file, where one is named, before anything is shown."""
    from rich.markup import escape
    from rich.table import Table

    from spex_mech.files.json import json_text, write_whole
    from spex_mech.files.records import plain

    def figure(value: Any) -> str:
        if isinstance(value, Mapping):
            return ", ".join(f"{escape(str(k))} {escape(str(v))}" for k, v in value.items())
        return "not measured" if value is None else f"{value:,.3g}"

    if path is not None:
        write_whole(path, json_text(plain(result)))
    table = Table(title=", ".join(f"{k} {v}" for k, v in result["machine"].items()), title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in result["summary"].items():
        table.add_row(name, figure(value))
    console = Terminal()
    console.print(table)
    if path is not None:
        console.print(f"every cell: {escape(str(path))}")
