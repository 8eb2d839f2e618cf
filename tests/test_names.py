"""The vocabularies stand once, in `spex_mech.names`; every table that is keyed by one has exactly its words."""

import ast
from pathlib import Path

import pytest
import torch

from spex_mech import names
from spex_mech.ablation.replacement import ASSUMPTIONS
from spex_mech.cli.bench_command import BENCHES
from spex_mech.formats.interchange import EXPORTERS
from spex_mech.measuring.decode import DECODERS
from spex_mech.show.plot import PLOT_COLOURS
from spex_mech.tasks.metrics import METRICS
from spex_mech.walsh.link.shapes import SHAPES
from spex_mech.walsh.link_function import Link

LINKS = {  # one of each
    "identity": (),
    "logistic": (0.0, 1.0, 0.5, 0.25),
    "softplus": (0.0, -1.0, 0.5, 2.0),
    "spline": (0.0, -1.0, 1.0, 2.0, 3.0, 1.0, 0.5),
}

TABLES = [
    (names.DECODER_NAMES, DECODERS),
    (names.LINK_NAMES, LINKS),
    (names.LINK_NAMES, {"identity", *(shape.link for shape in SHAPES.values())}),
    (names.METRIC_NAMES, METRICS),
    (names.REPLACEMENT_KINDS, ASSUMPTIONS),
    (names.KINDS, PLOT_COLOURS),
    (names.FORMAT_NAMES, EXPORTERS),
    (names.BENCH_NAMES, BENCHES),
]


@pytest.mark.parametrize(("words", "table"), TABLES)
def test_a_table_has_the_words_of_its_vocabulary(words, table):
    assert set(words) == set(table)
    assert len(words) == len(set(words))


@pytest.mark.parametrize("name", names.LINK_NAMES)
def test_every_link_increases_and_has_an_inverse(name):
    link, latent = Link(name, LINKS[name]), torch.linspace(-2, 2, 9, dtype=torch.float64)
    torch.testing.assert_close(link.inverse(link(latent)), latent)
    assert (link.derivative(latent) > 0).all()


def test_a_decoder_and_a_metric_know_their_own_names():
    assert all(solver().name == name for name, solver in DECODERS.items())
    assert all(metric.name == name for name, metric in METRICS.items())


def words_listed(path: Path) -> list[frozenset[str]]:
    """Every tuple, list, set or Literal of three texts or more."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Tuple | ast.List | ast.Set) and len(node.elts) > 2:
            words = [part.value for part in node.elts if isinstance(part, ast.Constant)]
            found.append(frozenset(words) if len(words) == len(node.elts) else frozenset())
    return found


def test_no_vocabulary_is_said_again():
    known = {frozenset(words) for words, _ in TABLES}
    known |= {frozenset(words) for words in (names.DECODER_CHOICES, names.LINK_CHOICES, names.MODEL_KINDS)}
    ordered = {"names.py", "comparisons.py", "other_replacements.py"}  # an audit tries them in an order of its own
    files = [path for path in Path(names.__file__).parent.rglob("*.py") if path.name not in ordered]
    assert not [path.name for path in files if known & set(words_listed(path))]
