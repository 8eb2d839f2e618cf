"""What this installation has, what it needs, and what does not fit; and how warnings look in the terminal."""

import re
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

OPTIONAL = {"matplotlib": "figures", "ray": "several machines"}


@dataclass(frozen=True)
class Package:
    """A package: the version found (None: not there), the least version that will do, and what it is for."""

    name: str
    found: str | None
    needed: str
    use: str = ""

    @property
    def problem(self) -> str | None:
        """What is wrong, or None."""
        if self.found is None:
            return None if self.use else f"{self.name} is not installed; it needs {self.needed}"
        return f"{self.name} {self.found} is too old; it needs {self.needed}" if self._old() else None

    def _old(self) -> bool:
        least = re.search(r">=\s*([\d.]+)", self.needed)
        return least is not None and _numbers(self.found or "") < _numbers(least[1])


def packages() -> list[Package]:
    """What ``spex-mech`` requires, and what adds something to it."""
    try:
        stated = requires("spex-mech") or []
    except PackageNotFoundError:
        stated = []
    found = []
    for line in stated:
        name = re.match(r"[\w.-]+", line)
        if name is not None and "extra ==" not in line:
            found.append(Package(name[0], _version_of(name[0]), line[len(name[0]) :].split(";")[0].strip()))
    return found + [Package(name, _version_of(name), "", use) for name, use in OPTIONAL.items()]


def devices() -> dict[str, Any]:
    """What torch was built for, and what it sees."""
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"built_for": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only", "seen": names}


def describe_environment() -> dict[str, Any]:
    """All of it as plain values: packages, devices, and what does not fit."""
    rows = packages()
    return {
        "python": sys.version.split()[0],
        "spex-mech": _version_of("spex-mech"),
        "packages": {p.name: {"found": p.found, "needed": p.needed} for p in rows},
        "devices": devices(),
        "problems": [p.problem for p in rows if p.problem],
    }


def print_environment(console: Console) -> None:
    """The same as a table of at most 80 columns."""
    table = Table(title="Installation", title_justify="left")
    for name in ("what", "found", "needs", ""):
        table.add_column(name, overflow="fold")
    table.add_row("python", sys.version.split()[0], ">=3.11", "[green]ok[/]")
    table.add_row("spex-mech", _version_of("spex-mech") or "no metadata", "", "")
    for package in packages():
        missing = f"[dim]only for {package.use}[/]" if package.found is None else "[green]ok[/]"
        verdict = "[red]see below[/]" if package.problem else missing
        table.add_row(package.name, package.found or "not installed", escape(package.needed), verdict)
    seen = devices()
    table.add_row("torch runs on", ", ".join(seen["seen"]) or "the CPU", "", escape(seen["built_for"]))
    console.print(table)
    if seen["built_for"] != "CPU only" and not seen["seen"]:
        console.print("[yellow]torch was built for CUDA and sees no device:[/] no driver, or none that fits it.")
    for package in packages():
        if package.problem:
            console.print(f"[red]{escape(package.problem)}[/]: pip install -U '{package.name}{package.needed}'")


def _version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3])
