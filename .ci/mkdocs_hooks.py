"""Pages that are made while the documentation builds: the reference, the gallery, the examples."""

from importlib import import_module
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the pages that no file in docs/ holds."""
    made = {"reference.md": reference(), "gallery.md": (ROOT / "circuits" / "README.md").read_text()}
    wanted = {page for page in _pages(config.nav) if page.startswith("examples/")}
    made |= {page: rendered(ROOT / Path(page).with_suffix(".py")) for page in wanted}
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def reference() -> str:
    """One entry for every public name, at its home; the namespaces with what is in them."""
    import spex_mech

    entries: dict[str, list[str]] = {}
    for name, home in spex_mech._HOMES.items():
        if name not in spex_mech._NAMESPACES:
            entries.setdefault(home.rpartition(".")[0], []).append(home)
    for namespace in ("plot", "shards", "tl"):
        module = import_module(spex_mech._HOMES[namespace])
        own = [n for n, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        entries[f"{module.__name__} as {namespace}"] = [f"{module.__name__}.{n}" for n in own if n[0] != "_"]
    lines = ["# Reference", "", "Everything `import spex_mech as sm` offers.", ""]
    for where, homes in entries.items():
        home, _, namespace = where.partition(" as ")
        lines += [f"## {f'sm.{namespace}' if namespace else home.removeprefix('spex_mech.')}", ""]
        lines += [line for home in homes for line in (f"::: {home}", "")]
    lines += [
        "## sm.components, sm.tasks",
        "",
        "What names components stands above; `sm.tasks`: see [Tasks](how-to/tasks.md).",
        "",
    ]
    for module, names in {
        "sentences": ("ioi", "gendered_pronouns", "greater_than"),
        "documents": ("docstring", "multiple_choice"),
        "sequences": ("induction", "modular_arithmetic"),
    }.items():
        lines += [line for name in names for line in (f"::: spex_mech.tasks.{module}.{name}", "")]
    return "\n".join(lines)


def rendered(script: Path) -> str:
    """A percent-format script as a page: its text, its code."""
    cells = script.read_text().split("# %%")[1:]
    parts = []
    for cell in cells:
        head, _, body = cell.partition("\n")
        if "[markdown]" in head:
            parts.append("\n".join(line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines()))
        else:
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join([*parts, f"The script: `examples/{script.name}`.", ""])


def _pages(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    items = nav.values() if isinstance(nav, dict) else nav or ()
    return [page for item in items for page in _pages(item)]
