"""Packages import in one direction, and what must start quickly imports little.

The order is the table of `docs/architecture.md`; imports made late or for types count as well.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdsearch

PACKAGE = Path(kdsearch.__file__).parent
ARCHITECTURE = Path(__file__).parents[1] / "docs" / "architecture.md"
PLUGINS = (
    "models/students",
    "methods",
    "study/loggers",
    "deploy/runtimes",
    "deploy/targets",
    "deploy/formats",
)
MAX_LINES = 400


def order() -> list[str]:
    """Return the packages and top modules from the table in the documentation, lowest first."""
    return re.findall(r"^\| `(\w+)` \|", ARCHITECTURE.read_text(encoding="utf-8"), re.M)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path: Path) -> Iterator[str]:
    """Yield the modules of kdsearch that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the package"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.partition(".")[0] == "kdsearch":
                yield next(found for found in candidates(name) if found in MODULES)


def candidates(name: str) -> Iterator[str]:
    """Yield the modules that `import name` may mean: itself, a name in its parent, and so on up."""
    parts = name.split(".")[1:]
    while parts:
        yield ".".join(parts)
        yield ".".join([*parts, "__init__"])
        parts.pop()
    yield "__init__"


GRAPH = {module: sorted(set(imported(path))) for module, path in MODULES.items()}


def package_of(module: str) -> str:
    return module.partition(".")[0]


def test_the_documented_order_lists_every_package_once() -> None:
    assert sorted(order()) == sorted({package_of(module) for module in MODULES})


def test_a_package_imports_only_packages_above_it() -> None:
    place = {package: i for i, package in enumerate(order())}
    wrong = [
        f"{module} imports {name}"
        for module, names in GRAPH.items()
        for name in names
        if place[package_of(name)] > place[package_of(module)]
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"circle: {' -> '.join([*path, module])}"
        if module not in done:
            for name in GRAPH[module]:
                if name != "__init__":  # the package imports its public names at first use
                    visit(name, (*path, module))
            done.add(module)

    for module in GRAPH:
        if module != "__init__":
            visit(module, ())


@pytest.mark.parametrize("folder", PLUGINS)
def test_a_plugin_imports_no_other_plugin(folder: str) -> None:
    prefix = folder.replace("/", ".")
    inside = {m for m in MODULES if m.rpartition(".")[0] == prefix and not m.endswith("__init__")}
    plugins = {m for m in inside if not m.rpartition(".")[2].startswith("_")} - {f"{prefix}.base"}
    assert plugins
    for plugin in plugins:
        assert not plugins & set(GRAPH[plugin]), plugin


def test_every_package_states_what_it_owns() -> None:
    for module, path in MODULES.items():
        if module.endswith(".__init__"):
            docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            assert 2 <= len(docstring.splitlines()) <= 6, module


def test_no_module_is_longer_than_its_limit() -> None:
    lengths = {m: len(path.read_text(encoding="utf-8").splitlines()) for m, path in MODULES.items()}
    assert {module: count for module, count in lengths.items() if count > MAX_LINES} == {}


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import kdsearch", {"torch", "optuna", "numpy", "yaml", "pydantic"}),
        (
            "import kdsearch.space, kdsearch.spec, kdsearch.hpo.stopping, kdsearch.study.summary",
            {"torch", "ray", "optuna", "plotly", "scipy"},
        ),
        (
            "import kdsearch.study.early_stopping, kdsearch.report, kdsearch.report.artifacts",
            {"torch", "ray"},
        ),
        (
            "import kdsearch.methods as m, kdsearch.models.students as s; m.names()",
            {"torch", "timm"},
        ),
        (
            "from kdsearch.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass",
            {"torch", "ray", "optuna", "plotly", "timm", "sklearn", "onnxruntime"},
        ),
    ],
    ids=["the package", "values", "a study and its report", "names of plug-ins", "--help"],
)
def test_imports_only_what_it_needs(code: str, unwanted: set[str]) -> None:
    script = f"{code}\nimport sys\nprint(); print(sorted({unwanted!r} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines()[-1] == "[]"
