"""Every example runs as it stands and ends in asserts on what it shows; the notebooks are the scripts.

`.ci/run` runs the notebooks in a kernel of their own: `python -m pytest --nbmake examples/*.ipynb`.
"""

import ast
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TRAINERS = {path.name for path in EXAMPLES.glob("train_*.py")}
MAKERS = {"make_planted_cards.py", *TRAINERS}  # scripts that wrote the gallery; tested beside it
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name not in MAKERS and "# %%" in path.read_text())
NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_examples_run_and_assert_what_they_show(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = (EXAMPLES / name).read_text()
    assert source.startswith("# %% [markdown]\n# # ")
    assert isinstance(ast.parse(source).body[-1], ast.Assert)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_there_are_notebooks_and_they_say_what_the_scripts_say():
    import jupytext

    assert len(NOTEBOOKS) >= 2
    for name in NOTEBOOKS:
        cells = jupytext.read(EXAMPLES / name).cells
        script = jupytext.read((EXAMPLES / name).with_suffix(".py")).cells
        assert [(c.cell_type, c.source) for c in cells] == [(c.cell_type, c.source) for c in script], name
