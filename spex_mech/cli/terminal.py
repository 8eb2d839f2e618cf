"""The terminal itself: where lines go, text that is no markup, and the package's warnings as lines."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from spex_mech.errors import SpexMechWarning


@contextmanager
def cautions_shown() -> Iterator[None]:
    """Warnings of the package as lines in the terminal, each once."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", SpexMechWarning)
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *where: Any) -> None:
            if not issubclass(category, SpexMechWarning):
                return usual(message, category, *where)
            Console(stderr=True).print(
                f"[yellow]caution:[/] {escaped_markup(str(message))}", highlight=False, soft_wrap=True
            )
            return None

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def terminal() -> Console:
    return Console(highlight=False)


def escaped_markup(text: str) -> str:
    from rich.markup import escape

    return escape(text)
