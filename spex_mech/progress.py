"""What goes on, while it does: a bar of masks (how many, how fast, how long still), a word where nothing counts.

Written to stderr, by rich.
"""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tick = Callable[[int], None]


@contextmanager
def undisturbed() -> Iterator[None]:
    """Around what is imported late: Python's random numbers and OpenMP's variables are as before when it is there.

    rich draws numbers while it is loaded; scikit-learn loads rich, and sets such variables.
    """
    drawn, there = random.getstate(), set(os.environ)
    try:
        yield
    finally:
        random.setstate(drawn)
        for name in {name for name in os.environ if name.startswith("KMP_")} - there:
            del os.environ[name]


@contextmanager
def mask_progress(total: int, label: str, *, shown: bool) -> Iterator[Tick]:
    """Yields a function to be called with the number of masks just finished; does nothing where not `shown`."""
    if not shown:
        yield lambda _: None
        return
    with undisturbed():
        from rich.console import Console
        from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
        from rich.text import Text

    class Rate(ProgressColumn):
        """Masks a second, over the whole run so far."""

        def render(self, task: object) -> Text:
            speed = getattr(task, "finished_speed", None) or getattr(task, "speed", None)
            return Text("" if speed is None else f"{speed:,.0f} masks/s")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} masks"),
    )
    with Progress(*columns, Rate(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total)
        yield lambda finished: bar.advance(task, finished)


@contextmanager
def said(what: str, *, shown: bool) -> Iterator[None]:
    """A word and a moving sign in the terminal for as long as the block takes; nothing elsewhere, or where not
    `shown`."""
    if not shown:
        yield
        return
    with undisturbed():
        from rich.console import Console

    with Console(stderr=True).status(what):
        yield
