"""Where the cards are: those that come with the package by name, any other by its folder."""

from pathlib import Path

from spex_mech.errors import FormatError
from spex_mech.gallery.card import Card
from spex_mech.gallery.reader import read_card


def cards() -> tuple[str, ...]:
    """Names of the cards that come with the package, in alphabetical order."""
    home = _home()
    return tuple(sorted(path.parent.name for path in home.glob("*/card.toml"))) if home else ()


def open_card(name_or_path: str | Path) -> Card:
    """Read a card: a name of the gallery, or any folder that holds a ``card.toml``.

    Raises:
        FormatError: there is no such card, or it is wrong; everything that is wrong with it is listed.
    """
    return read_card(_find(name_or_path))


def _home() -> Path | None:
    """``circuits/`` of a clone, or the copy inside an installed wheel."""
    here = Path(__file__).resolve().parents[1]
    return next((p for p in (here / "_circuits", here.parent / "circuits") if p.is_dir()), None)


def _find(name_or_path: str | Path) -> Path:
    home, given = _home(), Path(name_or_path)
    if str(name_or_path) in cards() and home is not None:
        return home / str(name_or_path)
    if (given / "card.toml").is_file():
        return given.resolve()
    raise FormatError(
        f"{str(name_or_path)!r} is no card: it is neither a folder with a card.toml nor one of the gallery "
        f"({', '.join(cards()) or 'which is empty here'})."
    )
