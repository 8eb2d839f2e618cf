"""`Terminal`: where every command prints. Whatever it is given, no text in it acts on the terminal."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from spex_mech.errors import SpexMechWarning, printable


class Terminal(Console):
    """rich's console, all of whose text passes `printable`: titles, tables, messages, with their markup or without."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, emoji=False)

    def render_str(self, text: str, **how: Any) -> Text:
        """See rich: every plain string that is printed comes through here, the cells of tables too."""
        return super().render_str(printable(text), **how)


@contextmanager
def cautions_shown() -> Iterator[None]:
    """Warnings of the package as lines in the terminal, each once."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", SpexMechWarning)
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *where: Any) -> None:
            if not issubclass(category, SpexMechWarning):
                return usual(message, category, *where)
            Terminal(stderr=True).print(f"[yellow]caution:[/] {escape(str(message))}", soft_wrap=True)
            return None

        warnings.showwarning = show  # type: ignore[assignment]
        yield
