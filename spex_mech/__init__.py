"""Find which attention heads and MLP neurons of a transformer matter together.

Ablate sets of components by masks, recover a sparse polynomial of the keep bits from the responses (SPEX, ProxySPEX and
kin), read its interactions as a circuit. The spine is `discover`; the conventions stand in `spex_mech.walsh`.

Importing this package imports nothing else: what it offers stands once, in the imports of the stub beside this file
(`__init__.pyi`), and every name is fetched from its home on first use.
"""

from ast import Assign, ImportFrom, Name, parse
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def _homes() -> dict[str, str]:
    """Public name → where it is defined, dotted: a value in its module, or a module that serves as a namespace."""
    homes = dict[str, str]()
    for node in parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ImportFrom):
            homes |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, Assign) and isinstance(node.value, Name):  # tl = transformer_lens_hooks
            homes |= {to.id: homes.pop(node.value.id) for to in node.targets if isinstance(to, Name)}
    return homes


_HOMES = _homes()
_NAMESPACES = {"components", "plot", "shards", "tasks", "tl"}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; its public names are {', '.join(__all__)}."
        )
    home, _, attribute = _HOMES[name].rpartition(".")
    value = import_module(_HOMES[name]) if name in _NAMESPACES else getattr(import_module(home), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
