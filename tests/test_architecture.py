"""The house: which room may import which (docs/how-it-works.md), read from the source; sizes, names, laziness."""

import ast
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from functools import cache
from importlib.metadata import version
from pathlib import Path

import networkx as nx
import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "spex_mech"
HOUSE = PACKAGE.parent / "docs" / "how-it-works.md"
MAX_LINES, SMALL = 340, 40

# The rooms from the ground up. A room imports only what is named beside it, and all of that stands above its line, so
# no arrow runs up and no circle can be. `errors`, `names` and `progress` are open to all.
OPEN = {"errors", "names", "progress"}
FLOORS: dict[str, set[str]] = {
    "errors": set(),
    "names": set(),
    "progress": set(),
    "components": set(),
    "walsh": set(),
    "files": {"components"},
    "tasks": {"files"},
    "circuit": {"components", "walsh", "files"},
    "store": {"components", "walsh", "files", "circuit"},
    "ablation": {"components", "walsh", "files", "tasks", "store"},
    "formats": {"components", "files", "circuit", "ablation"},
    "gallery": {"components", "walsh", "files", "tasks", "ablation"},
    "measuring": {"components", "walsh", "files", "tasks", "circuit", "store", "ablation", "gallery"},
    "lenses": {"components", "tasks", "ablation", "measuring"},
    "auditing": {"components", "walsh", "files", "tasks", "circuit", "store", "ablation", "measuring"},
    "show": {"components", "walsh", "files", "tasks", "circuit", "store", "gallery", "auditing"},
    "api": {
        "components", "walsh", "files", "tasks", "circuit", "store", "ablation", "formats", "measuring", "lenses",
        "auditing", "show",
    },
    "bench": {"components", "walsh", "tasks", "circuit", "store", "ablation", "gallery", "measuring", "auditing"},
    "cli": {
        "components", "files", "tasks", "circuit", "store", "ablation", "formats", "gallery", "measuring", "auditing",
        "api",
    },  # and the bench by its name, where there is one: the wheel has none
}  # fmt: skip
# Inside a room: files that alone may import another room, or may not import a sibling.
ONLY = {
    ("ablation", "walsh"): {  # the rest of the surgery has never heard of a polynomial
        "ablation.backends.planted",
        "ablation.backends.planted_file",
        "ablation.backends.planted_subject",
    },
    ("ablation", "store"): {"ablation.respond"},
    ("circuit", "walsh"): {"circuit.build", "circuit.backups", "circuit.select", "circuit.search", "circuit.solve"},
    ("formats", "ablation"): {"formats.transformer_lens_hooks"},
    ("measuring", "gallery"): {"measuring.workers"},  # a worker of its own opens the study
}
# The wings of walsh, from the ground up; "" are the files of walsh itself (spectrum, transform, decoding …).
WINGS = ["masks", "", "decoders", "certainty", "spex", "joint", "link"]
# library → the only modules that may import it
SOLE_IMPORTERS = {
    "lightgbm": {"walsh.decoders.trees"},
    "sklearn": {"walsh.decoders.lasso"},
    "transformer_lens": {"ablation.backends.transformer_lens", "ablation.load"},
    "nnsight": {"ablation.backends.nnsight"},
    "ray": {"measuring.ray_pool"},
    "typer": {"cli.main", "cli.options"},
    "filelock": {"files.locks"},
    "jinja2": {"show.html"},
    "msgspec": {"files.schema"},
    "galois": set(),
    "shapiq": set(),
    "pickle": set(),
}
TORCH_FREE = ("errors", "names", "progress", "components", "files", "circuit", "formats", "gallery", "show")


def modules() -> dict[str, Path]:
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def room(name: str) -> str:
    return name.split(".")[0]


@cache
def imports(path: Path) -> frozenset[str]:
    """Everything imported anywhere in a file, lazily or for types only as well."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            for alias in node.names:
                inside = f"{base}.{alias.name}"
                found.add(inside if base.startswith("spex_mech") and is_module(inside) else base)
    return frozenset(found)


def is_module(dotted: str) -> bool:
    where = PACKAGE.parent.joinpath(*dotted.split("."))
    return where.with_suffix(".py").exists() or (where / "__init__.py").exists()


def inside(path: Path) -> set[str]:
    found = (name for name in imports(path) if name.split(".")[0] == "spex_mech")
    return {name.removeprefix("spex_mech").removeprefix(".") for name in found}


def wrong_arrows(name: str, targets: set[str]) -> set[str]:
    """Which of a module's imports the tables forbid."""
    here, wrong = room(name), set()
    for target in targets - {""}:
        there = room(target)
        if there == here or there in OPEN:
            continue
        sole = ONLY.get((here, there))
        if there not in FLOORS[here] or (sole is not None and name not in sole):
            wrong.add(target)
    return wrong


@pytest.mark.parametrize("name", [name for name in modules() if name])
def test_imports_follow_the_arrows(name):
    assert room(name) in FLOORS, f"{room(name)} has no line in the table of floors"
    assert not wrong_arrows(name, inside(modules()[name]))


def test_the_floors_stand_on_each_other():
    floors = list(FLOORS)
    above = [(a, b) for a, below in FLOORS.items() for b in below if floors.index(b) >= floors.index(a)]
    assert not above
    assert {room(name) for name in modules() if name} == set(FLOORS)


def test_the_table_names_no_arrow_that_is_not_there():
    there = {(room(name), room(t)) for name, path in modules().items() if name for t in inside(path)}
    assert not {(a, b) for a, below in FLOORS.items() for b in below} - there
    users = {
        (pair, name) for pair, names in ONLY.items() for name in names
        if name not in modules() or not any(room(t) == pair[1] for t in inside(modules()[name]))
    }  # fmt: skip
    assert not users


def floors_table() -> str:
    """The floors as docs/how-it-works.md shows them: a room a row, files that alone may use an arrow in italics."""

    def beside(here: str, there: str) -> str:
        sole = sorted(name.removeprefix(f"{here}.") for name in ONLY.get((here, there), ()))
        return f"{there} (*{', '.join(sole)}*)" if sole else there

    rows = [
        f"| `{here}` | {', '.join(beside(here, there) for there in FLOORS if there in below) or '–'} |"
        for here, below in FLOORS.items()
        if here not in OPEN
    ]
    return "\n".join(["| room | imports |", "|---|---|", *rows])


def test_the_page_shows_the_floors():
    """Where it does not: ``python tests/test_architecture.py`` writes them there."""
    assert HOUSE.read_text() == page_with_floors()


def page_with_floors() -> str:
    head, _, rest = HOUSE.read_text().partition("<!-- floors -->")
    return f"{head}<!-- floors -->\n\n{floors_table()}\n\n<!-- /floors -->{rest.partition('<!-- /floors -->')[2]}"


def test_no_circle_not_even_a_lazy_one():
    graph = nx.DiGraph((name, target) for name, path in modules().items() for target in inside(path) if name)
    graph.remove_edges_from(list(nx.selfloop_edges(graph)))
    assert not [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1]


def test_the_wings_of_walsh_stand_on_each_other():
    def wing(name: str) -> str:
        return name.split(".")[1] if name.count(".") > 1 or is_package(name) else ""

    def is_package(name: str) -> bool:
        return modules()[name].name == "__init__.py"

    graph = nx.DiGraph()
    for name, path in modules().items():
        if room(name) == "walsh" and not is_package(name):
            graph.add_edges_from((wing(name), wing(t)) for t in inside(path) if room(t) == "walsh" and t != "walsh")
    up = {(a, b) for a, b in graph.edges if a != b and WINGS.index(b) > WINGS.index(a)}
    assert not up
    assert set(graph) == set(WINGS)


@pytest.mark.parametrize("library", SOLE_IMPORTERS)
def test_edge_libraries_stay_at_the_edge(library):
    users = {name for name, path in modules().items() if library in {i.split(".")[0] for i in imports(path)}}
    assert {name for name in users if room(name) != "bench"} <= SOLE_IMPORTERS[library]


@pytest.mark.parametrize("name", [n for n in modules() if room(n) in TORCH_FREE and n != "gallery.studies"])
def test_rooms_of_plain_values_know_no_torch(name):
    if name in ONLY["formats", "ablation"] | ONLY["circuit", "walsh"]:
        pytest.skip("stands between two rooms")
    assert "torch" not in {i.split(".")[0] for i in imports(modules()[name])}


def importers() -> dict[str, set[str]]:
    found = defaultdict(set)
    for name, path in modules().items():
        for target in inside(path):
            found[target].add(name)
    return found


def test_files_are_neither_long_nor_crumbs():
    lines = {name: len(path.read_text().splitlines()) for name, path in modules().items()}
    assert not {name: n for name, n in lines.items() if n > MAX_LINES}
    used = importers()
    crumbs = {
        name: n for name, n in lines.items()
        if n < SMALL and len(used[name]) == 1 and modules()[name].name not in ("__init__.py", "__main__.py")
    }  # fmt: skip
    assert not crumbs


def test_no_two_files_bear_one_name():
    stems = Counter(path.stem for path in modules().values() if not path.stem.startswith("__"))
    assert not {stem for stem, times in stems.items() if times > 1}


def public_names(path: Path) -> set[str]:
    """What a file defines at its top, without a leading underscore."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return {name for name in found if not name.startswith("_")}


def test_no_public_name_is_defined_twice():
    homes = defaultdict(list)
    for name, path in modules().items():
        named_by_its_file = name in (
            "cli.main",
            "cli.export_command",
            "show.plot",
        )  # `spex-mech export`, sm.plot.circuit
        if path.name != "__init__.py" and room(name) != "bench" and not named_by_its_file:
            for public in public_names(path):
                homes[public].append(name)
    assert not {public: where for public, where in homes.items() if len(where) > 1}


def test_the_table_sees_a_wrong_arrow(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("from spex_mech.ablation import subject\ndef f():\n    import spex_mech.cli.main\n")
    assert inside(bad) == {"ablation.subject", "cli.main"}
    assert wrong_arrows("walsh.spex.spex", inside(bad)) == {"ablation.subject", "cli.main"}
    assert wrong_arrows("ablation.sites", {"walsh.spectrum"}) == {"walsh.spectrum"}
    assert wrong_arrows("ablation.backends.planted", {"walsh.spectrum", "errors"}) == set()


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, spex_mech; dir(spex_mech); "
        "heavy = {'torch', 'numpy', 'transformer_lens', 'nnsight', 'matplotlib', 'lightgbm', 'pandas'} & "
        "set(sys.modules); "
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_public_name_resolves():
    import spex_mech

    assert all(getattr(spex_mech, name) is not None for name in spex_mech.__all__)
    assert set(spex_mech.__all__) <= set(dir(spex_mech))
    assert len(spex_mech.__all__) <= 48
    with pytest.raises(AttributeError, match="no attribute 'discovr'"):
        _ = spex_mech.discovr


def test_the_namespaces_are_modules_and_all_else_is_none():
    import spex_mech

    modules = {name for name in spex_mech.__all__ if isinstance(getattr(spex_mech, name), type(ast))}
    assert modules == spex_mech._NAMESPACES == {"components", "plot", "shards", "tasks", "tl"}
    assert spex_mech.tl.__name__ == "spex_mech.formats.transformer_lens_hooks"
    assert [spex_mech.plot.circuit, spex_mech.shards.merge_shards, spex_mech.components.kv_groups]


def test_type_checkers_see_what_is_there(tmp_path):
    """The stub's names are the package's, with their signatures; a name that is not there is an error."""
    script = tmp_path / "user.py"
    script.write_text(
        "import spex_mech as sm\nreveal_type(sm.heads)\nreveal_type(sm.tl.mib_config)\nsm.__version__ + 1\nsm.discovr\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PACKAGE.parent)
    heads, config, added, wrong = [line for line in done.stdout.splitlines() if "user.py:" in line]
    assert "layers: typing.Iterable[int] | None =) -> spex_mech.components.sets.ComponentSet" in heads
    assert "-> dict[str, Any]" in config
    assert "[operator]" in added
    assert "[attr-defined]" in wrong


def test_the_version_stands_once():
    import spex_mech

    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert spex_mech.__version__ == version("spex-mech")
    assert f"## {spex_mech.__version__} " in (PACKAGE.parent / "docs" / "releases.md").read_text()


def test_no_module_bears_the_name_of_a_public_function():
    import spex_mech

    top = {room(name) for name in modules() if name}
    shadowed = {name for name in top & set(spex_mech.__all__) if not isinstance(getattr(spex_mech, name), type(ast))}
    assert not shadowed


if __name__ == "__main__":
    HOUSE.write_text(page_with_floors())
