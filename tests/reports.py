"""Dossiers and circuits that the tests of the report share."""

import os
import shutil
from pathlib import Path

import numpy as np

from spex_mech.circuit.graph import Circuit
from spex_mech.circuit.kinds import kind_of
from spex_mech.circuit.nodes import Interaction, Node
from spex_mech.components import ComponentSet
from spex_mech.show.dossier import Check, Dossier, Fact, Points, Sheet, SizePoint

HOSTILE = (
    "</script><script>window.hit=1</script>",
    '"><img src=x onerror="window.hit=1">',
    "<svg onload=window.hit=1>",
    "'; window.hit=1; //",
    "<!--<script>",
    "\u2028window.hit=1\u2029",
    "javascript:window.hit=1",
    "&lt;b&gt; \x00 \ud800 \u202egnp",
    "<style>*{background:url(http://example.invalid/x)}</style>",
)


def circuit(n: int, pairs: int, triples: int, role: str | None = None, seed: int = 0) -> Circuit:
    """A circuit over n heads and neurons with random effects, some joint ones among them."""
    generator = np.random.default_rng(seed)
    names = [f"a{i // 8}.h{i % 8}" if i % 3 else f"m{i // 8}.n{i}" for i in range(n)]
    components = ComponentSet.of(names)
    order = components.names
    effects = {(name,): float(generator.normal()) for name in order}
    for size, number in ((2, pairs), (3, triples)):
        for _ in range(number):
            members = tuple(order[i] for i in sorted(generator.choice(n, size, replace=False)))
            effects[members] = float(generator.normal())
    known = {frozenset(members): value for members, value in effects.items()}
    interactions = tuple(
        Interaction(members, value, kind_of(members, known), 0.02, 1e-20, 0.9, 2 * value)
        for members, value in effects.items()
    )
    nodes = tuple(Node(c, effects[(c.name,)], 0.02, role) for c in components)
    return Circuit(components, nodes, interactions, "logit", energy={1: 3.0, 2: 1.0, 3: 0.2})


def dossier(found: Circuit, words: str = "Plain words.") -> Dossier:
    """A dossier with something in every part of it."""
    joint = next(i for i in found.interactions if i.order > 1)
    return Dossier(
        title=words, summary=words, circuit=found, answer=(words, words), warnings=(words,),
        headline=(Fact(words, words, words),), question=(Fact(words, words, words),), prompts=(words, words),
        prompt_count=16, checks={joint.components: Check(1.25, 0.01, 1e-9, True)},
        points=Points((0.0, 1.0, 2.0), (0.1, 0.9, 2.0), 0.987654, 3, words),
        sizes=(SizePoint(0, 0.0, 0.0), SizePoint(2, 0.6, 0.7, 0.1, 0.05), SizePoint(5, 1.0, 1.02)),
        confidence=(words,), sheets=(Sheet(words, (words, "value"), ((words, 1.5), (None, 3)), words),),
        limits=(words, words), provenance=(Fact(words, words),), commands=(words,),
    )  # fmt: skip


def chromium() -> str | None:
    """Where Chromium is, or None."""
    candidates = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    return next((path for path in candidates if path and os.access(path, os.X_OK)), None)


def shipped(name: str) -> Path:
    return Path(__file__).resolve().parents[1] / "circuits" / name
