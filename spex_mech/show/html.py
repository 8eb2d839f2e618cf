"""A page that can neither fetch nor run anything else, from text nobody has checked.

Every text reaches the page through the template, which escapes it, or through `embed`. The policy of the page (a CSP
meta tag) allows one style sheet and one script, each named by its hash, and no network at all: a text that slipped
through would still not run.
"""

import base64
import hashlib
import html
import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from spex_mech.errors import printable
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
        return f"Page: {printable(self.title)} ({len(self.html.encode()) >> 10:,} KiB); .save(path) writes it"

    __repr__ = __str__


def embed(data: Any, name: str) -> Markup:
    """Plain data as a JSON script element; nothing in it can end the element.

    >>> print(embed(["</script>"], "data"))
    <script type="application/json" id="data">["\\u003c/script\\u003e"]</script>
    """
    plain = json.dumps(data, separators=(",", ":"), allow_nan=False).translate(_UNSAFE)
    return Markup(f'<script type="application/json" id="{escaped(name)}">{plain}</script>')


def page(title: str, data: Any, **values: Any) -> Page:
    """The whole document: ``report.html`` filled in, with policy, style, data and script."""
    style, script = asset("report.css"), asset("report.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    # what no text may change: our own files, the policy and the data, which `embed` made safe
    own = {name: Markup(text) for name, text in (("style", style), ("script", script), ("policy", policy))}
    return Page(_template("report.html").render(**own, data=embed(data, "data"), **values), title)


@cache
def _template(name: str) -> Any:
    """A template; what is no `Markup` is escaped, whether it is text or not."""
    environment = Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, finalize=_safe
    )
    return environment.from_string(asset(name))


def _safe(value: Any) -> Markup:
    return value if isinstance(value, Markup) else Markup(escaped(value))


@cache
def asset(name: str) -> str:
    """A file that ships beside this module."""
    return files("spex_mech.show").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
