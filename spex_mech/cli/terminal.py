"""`Terminal`: where every command prints. Whatever it is given, no text in it acts on the terminal."""

from typing import Any

from rich.console import Console
from rich.text import Text

from spex_mech.errors import printable


class Terminal(Console):
    """rich's console, all of whose text passes `printable`: titles, tables, messages, with their markup or without."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, emoji=False)

    def render_str(self, text: str, **how: Any) -> Text:
        """See rich: every plain string that is printed comes through here, the cells of tables too."""
        return super().render_str(printable(text), **how)
