"""The documentation: its code runs, its links lead somewhere, its commands exist, its pictures are what code draws."""

import pkgutil
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import spex_mech

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
BLOCK = re.compile(r"^(<!-- not run:[^\n]*-->\n)?```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def code(page: str) -> str:
    return "\n\n".join(body for skip, body in BLOCK.findall((DOCS / page).read_text()) if not skip)


@pytest.mark.parametrize("page", [page for page in PAGES if code(page)])
def test_the_code_of_a_page_runs_and_ends_in_an_assert(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert code(page).strip().splitlines()[-1].startswith("assert ")
    script = tmp_path / "page.py"
    script.write_text(code(page))
    runpy.run_path(str(script))


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_exist(page):
    text = re.sub(r"^```.*?^```", "", (DOCS / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
    assert not [link for link in links if not (DOCS / page).parent.joinpath(link).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_files_named_exist(page):
    """A path in backticks is one of the project's, or of the package; what a run or a user writes has no folder."""
    named = re.findall(r"`([\w./-]+/[\w.-]+\.pyi?)`", (DOCS / page).read_text())
    assert not [path for path in named if not any((ROOT / up / path).exists() for up in ("", "spex_mech"))]


@pytest.mark.parametrize("page", [page for page in PAGES if page != "releases.md"])  # which has old names too
def test_names_of_the_package_resolve(page):
    text = (DOCS / page).read_text()
    assert set(re.findall(r"\bsm\.(\w+)", text)) <= set(spex_mech.__all__)
    for name in re.findall(r"\bspex_mech(?:\.[A-Za-z]\w*)+(?![/\w])", text):
        assert pkgutil.resolve_name(name) is not None


def test_thirty_questions_have_a_file_as_answer():
    table = (DOCS / "how-it-works.md").read_text().partition("## Where is")[2].partition("## ")[0]
    files = re.findall(r"`([\w./]+\.pyi?)`", table)
    assert len(set(files)) == len(files) >= 30
    assert not [path for path in files if not (ROOT / "spex_mech" / path).is_file()]


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith(("explain/", "how-it-works"))])
def test_lines_are_short_enough_to_read_in_a_terminal(page):
    assert max(map(len, (DOCS / page).read_text().splitlines())) <= 200


def test_commands_and_options_named_exist():
    from typer.main import get_command

    from spex_mech.cli.main import app

    commands = get_command(app).commands
    known = {name: {flag for p in command.params for flag in p.opts} for name, command in commands.items()}
    for page in PAGES:
        for line in re.findall(r"spex-mech (\w[^\n`|]*)", (DOCS / page).read_text()):
            name, *rest = line.split()
            if name not in known:
                continue  # prose such as "spex-mech is …"
            assert {word for word in rest if word.startswith("--")} <= known[name] | {"--help"}, (page, line)


def test_pictures_are_those_that_the_script_draws(tmp_path):
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        import make_pictures as pictures
    finally:
        sys.path.pop(0)
    shown = {path.stem for path in (DOCS / "pictures").glob("*.svg")}
    used = set(re.findall(r"pictures/([\w-]+)\.svg", "".join((DOCS / page).read_text() for page in PAGES)))
    assert shown == used == set(pictures.PICTURES)
    pictures.PICTURES.pop("proxyspex-masks")  # it fits thirty models
    pictures.main(str(tmp_path))
    for path in tmp_path.glob("*.svg"):
        assert _words(path) == _words(DOCS / "pictures" / path.name)


def _words(path: Path) -> list[str]:
    """What stands in a picture: its texts, and how many shapes it has; bits move with matplotlib's version."""
    text = path.read_text()
    return [*re.findall(r"<text[^>]*>([^<]*)<", text), str(text.count("<path"))]


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-f", str(ROOT / ".ci" / "mkdocs.yml")]
    done = subprocess.run([*command, "-d", str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    reference = (tmp_path / "reference.html").read_text()
    assert "spex_mech.api.discover.discover" in reference
    prose = re.sub(r"<pre.*?</pre>", "", reference, flags=re.DOTALL)
    assert not re.search(r"::\s|``|&gt;&gt;&gt;", re.sub(r"<[^>]+>", "", prose))  # no block of code left as text
    assert not re.search(r'(src|href)="https?://(?!arxiv)[^"]*\.(js|css)', reference)
