"""Every example runs as it stands and ends in asserts on what it shows; the notebooks are the scripts, and run too."""

import ast
import runpy
import subprocess
import sys
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


@pytest.mark.slow
def test_notebooks_run_in_a_kernel():
    command = [sys.executable, "-m", "pytest", "--nbmake", "-p", "no:cacheprovider", "-q", *NOTEBOOKS]
    done = subprocess.run(command, cwd=EXAMPLES, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
