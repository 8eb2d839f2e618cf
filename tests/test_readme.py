"""README's Python is run as it stands; its shape is what a newcomer needs first."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
LINES = README.read_text().splitlines()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run_and_end_in_an_assert(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert code.strip().splitlines()[-1].startswith("assert ")
    exec(compile(code, "README.md", "exec"), {})


def test_python_comes_by_line_25_and_the_folders_by_line_40():
    assert LINES.index("```python") < 25
    assert max(i for i, line in enumerate(LINES) if line.startswith("- `spex_mech/")) < 40
    assert any(line.startswith("What it does not do:") for line in LINES)


def test_relative_links_exist():
    links = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text())
    assert links
    assert not [link for link in links if not (README.parent / link).exists()]


def test_commands_named_exist():
    from typer.main import get_command

    from spex_mech.cli.main import app

    used = set(re.findall(r"spex-mech (\w+)", "\n".join(blocks("bash") + blocks("text"))))
    assert used
    assert used <= set(get_command(app).commands)
