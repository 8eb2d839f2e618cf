"""HTML from text nobody has checked: escaping, embedded data, and a page that can neither fetch nor run anything else.

Every text reaches the page through `escaped` or `embed`. The policy of the page (a CSP meta tag) allows one style sheet
and one script, each named by its hash, and no network at all: a text that slipped through would still not run.
"""

import base64
import hashlib
import html
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from spex_mech.files.json import write_whole
from spex_mech.files.text import escaped

_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}
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
        return f'<iframe title="{escaped(self.title)}" srcdoc="{html.escape(self.html, quote=True)}" {_FRAME}></iframe>'

    def __str__(self) -> str:
        return f"Page: {self.title} ({len(self.html.encode()) >> 10:,} KiB); .save(path) writes it"

    __repr__ = __str__


def foreign(value: Any) -> str:
    """Text of people's own: escaped, and its writing direction kept to itself."""
    return f"<bdi>{escaped(value)}</bdi>"


def embed(data: Any, name: str) -> str:
    """Plain data as a JSON script element; nothing in it can end the element.

    >>> embed(["</script>"], "data")
    '<script type="application/json" id="data">["\\\\u003c/script\\\\u003e"]</script>'
    """
    plain = json.dumps(data, separators=(",", ":"), allow_nan=False).translate(_UNSAFE)
    return f'<script type="application/json" id="{escaped(name)}">{plain}</script>'


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
    head = "".join(f'<th scope="col"{kind}>{escaped(c)}</th>' for c, kind in zip(columns, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    where = f' id="{escaped(name)}"' if name else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(caption)}"><table{where}>'
        f'<caption class="quiet">{escaped(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
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
        f'<link rel="icon" href="data:,">\n<title>{escaped(title)}</title>\n<style>{style}</style>\n</head>\n'
        f"<body>\n{body}\n{embed(data, 'data')}\n<script>{script}</script>\n</body>\n</html>\n",
        title,
    )


@cache
def asset(name: str) -> str:
    """A file that ships beside this module."""
    return files("spex_mech.show").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
