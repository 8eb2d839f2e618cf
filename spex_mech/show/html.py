"""HTML from text nobody has checked: escaping, embedded data, and a page that can neither fetch nor run anything else.

Every text reaches the page through `text` or `embed`. The page's policy (a CSP meta tag) allows one style sheet and one
script, each named by its hash, and no network at all: a text that slipped through would still not run.
"""

import base64
import hashlib
import html
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from spex_mech.files.json import write_whole

_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
_MINUS = "\u2212"
_FRAME = 'sandbox="allow-scripts" width="100%" height="720" frameborder="0"'


@dataclass(frozen=True, repr=False)
class Page:
    """A self-contained HTML page. In a notebook it shows itself, shut off from the notebook around it."""

    html: str
    title: str

    def save(self, path: str | Path) -> Path:
        """Write the page, whole or not at all; returns its path. Raises `FormatError` where it cannot be written."""
        return write_whole(path, self.html)

    def _repr_html_(self) -> str:
        return f'<iframe title="{text(self.title)}" srcdoc="{html.escape(self.html, quote=True)}" {_FRAME}></iframe>'

    def __str__(self) -> str:
        return f"Page: {self.title} ({len(self.html.encode()) >> 10:,} KiB); .save(path) writes it"

    __repr__ = __str__


def text(value: Any) -> str:
    """Text as HTML shows it, in content and in quoted attributes.

    >>> text('<b> & "c"')
    '&lt;b&gt; &amp; &quot;c&quot;'
    """
    whole = str(value).encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair cannot be written
    return html.escape("".join(c for c in whole if c in "\n\t" or ord(c) >= 32), quote=True)


def foreign(value: Any) -> str:
    """Text of people's own: escaped, and its writing direction kept to itself."""
    return f"<bdi>{text(value)}</bdi>"


def quoted_roles(names: Iterable[str], roles: Mapping[str, str], most: int = 40) -> str:
    """What parts of an input say, cut where it is long; nothing where one of them says nothing.

    >>> quoted(["s0", "s2"], {"s0": "not", "s2": "good"}), quoted(["s0", "a0.h1"], {"s0": "not"})
    ('“not” × “good”', '')
    """
    said = [roles.get(name, "") for name in names]
    return " × ".join(f"“{s if len(s) <= most else s[:most] + '…'}”" for s in said) if all(said) else ""


def embed(data: Any, name: str) -> str:
    """Plain data as a JSON script element; nothing in it can end the element.

    >>> embed(["</script>"], "data")
    '<script type="application/json" id="data">["\\\\u003c/script\\\\u003e"]</script>'
    """
    plain = json.dumps(data, separators=(",", ":"), allow_nan=False).translate(_UNSAFE)
    return f'<script type="application/json" id="{text(name)}">{plain}</script>'


def number(value: float | None, digits: int = 3, *, sign: bool = False) -> str:
    """A number for people: significant digits, a true minus; a dash where it is not known.

    >>> number(-0.012345), number(12345.6, sign=True), number(None)
    ('−0.0123', '+12,346', '–')
    """
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if size >= 10**digits:
        shown = f"{size:,.0f}"
    elif 0 < size < 1e-3:
        shown = f"{size:.{digits - 1}g}"
    else:
        shown = f"{size:.{max(0, digits - 1 - (math.floor(math.log10(size)) if size else 0))}f}"
    return (_MINUS if value < 0 else "+" if sign else "") + shown


def percent(share: float | None) -> str:
    """A share as a percentage; never 100 where it is less.

    >>> percent(0.98765), percent(0.99999), percent(1), percent(1e-6)
    ('98.8 %', '> 99.9 %', '100 %', '< 0.1 %')
    """
    if share is None or not math.isfinite(share):
        return "–"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.1f}".replace("-", _MINUS).removesuffix(".0") + " %"


def fit_words(r2: float) -> str:
    """R² for people; never 1 where it is less.

    >>> fit(0.98765), fit(0.999999)
    ('0.9877', '> 0.9999')
    """
    return "> 0.9999" if 0.99995 <= r2 < 1 else f"{r2:.4f}".replace("-", _MINUS)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    caption: str,
    name: str = "",
    words: Collection[int] = (0,),
) -> str:
    """A table in a region that scrolls by itself. Columns are text, cells HTML; those of `words` are left-aligned."""
    kinds = ["" if i in words else ' class="num"' for i in range(len(columns))]
    head = "".join(f'<th scope="col"{kind}>{text(c)}</th>' for c, kind in zip(columns, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    where = f' id="{text(name)}"' if name else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}"><table{where}>'
        f'<caption class="quiet">{text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


def page(title: str, body: str, data: Any) -> Page:
    """The whole document: policy, style, body, data, script."""
    style, script = asset("report.css"), asset("report.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return Page(
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="generator" content="spex_mech">\n<meta name="referrer" content="no-referrer">\n'
        f'<link rel="icon" href="data:,">\n<title>{text(title)}</title>\n<style>{style}</style>\n</head>\n'
        f"<body>\n{body}\n{embed(data, 'data')}\n<script>{script}</script>\n</body>\n</html>\n",
        title,
    )


@cache
def asset(name: str) -> str:
    """A file that ships beside this module."""
    return files("spex_mech.show").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
