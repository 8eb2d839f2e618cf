"""The arrows between modules (docs/how-it-works.md), read from the source; and the laziness of the package."""

import ast
import subprocess
import sys
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "spex_mech"

# module pattern → what it may import from the package; the first pattern that fits decides
ALLOWED: list[tuple[str, tuple[str, ...]]] = [
    ("errors", ()),
    ("progress", ()),
    ("fingerprints", ()),
    ("locks", ("errors",)),
    ("components*", ("components*", "errors")),
    ("task", ("errors",)),
    ("metrics", ("task", "errors")),
    ("walsh*", ("walsh*", "errors")),
    ("responses", ("components", "records", "errors")),
    ("records", ("errors",)),
    ("ablation*", ("ablation*", "components", "task", "metrics", "responses", "records", "errors")),
    ("lenses*", ("lenses*", "ablation*", "components", "task", "metrics", "responses", "errors")),
    ("planted", ("ablation*", "components", "task", "walsh.spectrum", "errors")),
    ("circuit.build", ("circuit*", "components", "walsh.spectrum", "errors")),
    ("circuit.select", ("circuit*", "components", "walsh.spectrum", "errors")),
    ("circuit.backups", ("circuit*", "components", "walsh.spectrum", "errors")),
    ("circuit.search", ("circuit*", "components", "walsh.spectrum", "errors")),
    ("circuit.solve", ("circuit*", "components", "walsh.spectrum", "errors")),
    ("circuit*", ("circuit*", "components", "errors")),
    ("tasks*", ("tasks*", "task", "errors")),
    ("gallery*", ("gallery*", "task", "tasks", "components", "circuit.files", "errors")),
    ("hook_tables", ("ablation*", "circuit.graph", "components", "errors")),
    ("workflow", ("ablation*", "circuit.graph", "components", "hook_tables", "task", "errors")),
    (
        "studies",
        (
            "ablation*",
            "lenses.prompted",
            "planted",
            "gallery",
            "task",
            "walsh*",
            "circuit.files",
            "components",
            "errors",
        ),
    ),
    (
        "runs",
        ("walsh*", "circuit.codec", "circuit.files", "circuit.graph", "components", "responses", "records", "errors"),
    ),
    ("running*", ("*",)),
    ("evidence.findings", ()),
    ("evidence.faithfulness", ("errors",)),
    ("evidence.knockouts", ("errors",)),
    ("evidence.passes", ("ablation*", "responses", "errors")),
    ("evidence.baselines", ("evidence.faithfulness", "evidence.passes", "responses", "walsh*", "errors")),
    ("evidence.factorials", ("evidence.passes", "circuit.backups", "walsh*", "errors")),
    ("evidence.audits", ("evidence.factorials", "evidence.findings", "evidence.knockouts", "circuit.files", "errors")),
    ("evidence*", ("evidence*", "ablation*", "walsh*", "circuit.*", "metrics", "responses", "runs", "task", "errors")),
    (
        "reports*",
        (
            "reports*",
            "evidence.audits",
            "circuit*",
            "walsh*",
            "components",
            "gallery",
            "runs",
            "studies",
            "task",
            "errors",
        ),
    ),
    (
        "reporting",
        ("reports*", "auditing", "evidence.audits", "circuit*", "components", "metrics", "runs", "task", "errors"),
    ),
    ("featuring", ("*",)),
    ("teaching", ("*",)),
    ("discovery", ("*",)),
    ("auditing", ("*",)),
    ("bench*", ("*",)),
    ("console.options", ("gallery",)),
    ("console.environment", ()),
    ("console.figures", ()),
    ("console.verdicts", ("console.figures", "evidence.audits")),
    ("console.costs", ("ablation*", "components", "task")),
    ("console*", ("*",)),
    ("cli", ("*",)),
    ("", ("*",)),  # the package itself: lazy re-exports
]
FORBIDDEN: list[tuple[str, tuple[str, ...]]] = [
    ("discovery", ("circuit.plot", "circuit.report", "circuit.interchange", "cli", "console*", "bench*")),
    ("auditing", ("circuit.plot", "circuit.report", "circuit.interchange", "cli", "console*", "bench*")),
    ("running*", ("discovery", "auditing", "evidence*", "report*", "cli", "console*", "bench*")),
    ("evidence*", ("discovery", "auditing", "cli", "console*", "bench*", "circuit.report")),
    ("reporting", ("cli", "console*", "bench*")),
    ("bench*", ("cli", "console*")),
]
# library → the only modules that may import it
SOLE_IMPORTERS = {
    "lightgbm": ("walsh.proxy", "walsh.trees", "walsh.boosting"),
    "transformer_lens": ("ablation.transformer_lens", "ablation.load"),
    "nnsight": ("ablation.nnsight",),
    "ray": ("ablation.ray_pool",),
    "typer": ("cli", "console.options"),
    "galois": (),
    "shapiq": (),
    "pickle": (),
    "sklearn": (),
}
TORCH_FREE = (
    "errors",
    "components*",
    "circuit.graph",
    "circuit.codec",
    "circuit.interchange*",
    "circuit.plot",
    "circuit.report",
    "circuit.page",
    "circuit.dossier",
    "circuit.drawing",
    "circuit.charts",
    "circuit.layout",
    "circuit.tables",
    "gallery*",
)


def modules() -> dict[str, Path]:
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


@cache
def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            base = node.module or ""
            inside = [f"{base}.{alias.name}" for alias in node.names]
            submodules = [name for name in inside if base.startswith("spex_mech") and is_module(name)]
            found |= set(submodules) or {base}
    return found


def is_module(dotted: str) -> bool:
    where = PACKAGE.parent.joinpath(*dotted.split("."))
    return where.with_suffix(".py").exists() or (where / "__init__.py").exists()


def inside(path: Path) -> set[str]:
    return {
        name.removeprefix("spex_mech").removeprefix(".") for name in imports(path) if name.split(".")[0] == "spex_mech"
    }


def fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def rule(name: str, table: list[tuple[str, tuple[str, ...]]]) -> tuple[str, ...] | None:
    return next((allowed for pattern, allowed in table if fnmatchcase(name, pattern)), None)


@pytest.mark.parametrize("name", modules())
def test_imports_follow_the_arrows(name):
    allowed = rule(name, ALLOWED)
    assert allowed is not None, f"{name} has no line in the table of arrows"
    wrong = {target for target in inside(modules()[name]) if not fits(target, allowed)}
    wrong |= {target for target in inside(modules()[name]) if fits(target, rule(name, FORBIDDEN) or ())}
    assert not wrong, f"{name} may not import {sorted(wrong)}"


@pytest.mark.parametrize("library", SOLE_IMPORTERS)
def test_edge_libraries_stay_at_the_edge(library):
    users = {name for name, path in modules().items() if library in {i.split(".")[0] for i in imports(path)}}
    assert {name for name in users if not name.startswith("bench.")} <= set(SOLE_IMPORTERS[library])


@pytest.mark.parametrize("name", [n for n in modules() if fits(n, TORCH_FREE)])
def test_values_and_circuits_know_no_torch(name):
    assert "torch" not in {i.split(".")[0] for i in imports(modules()[name])}


def test_the_table_sees_a_wrong_arrow(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("from spex_mech.ablation import subject\nimport spex_mech.cli.main\n")
    assert inside(bad) == {"ablation.subject", "cli"}
    assert not fits("ablation.subject", rule("walsh.spex", ALLOWED))


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
    with pytest.raises(AttributeError, match="no attribute 'discovr'"):
        _ = spex_mech.discovr


def test_no_module_bears_the_name_of_a_public_function():
    import spex_mech

    top = {name for name in modules() if name and "." not in name}
    assert not top & set(spex_mech.__all__)
