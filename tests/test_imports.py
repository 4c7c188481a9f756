"""Rooms import one way: each only what stands above it. What must start quickly imports little."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kdsearch

PACKAGE = Path(kdsearch.__file__).parent
# From the bottom of the house to the door; a folder is one room.
ROOMS = (
    "errors",
    "registry",
    "space",
    "schedule",
    "spec",
    "tails",
    "spread",
    "summary",
    "pareto",
    "trend",
    "stopping",
    "request",
    "storage",
    "lease",
    "progress",
    "sampler",
    "store",
    "study",
    "opening",
    "guesses",
    "rungs",
    "taps",
    "data",
    "model",
    "students",
    "methods",
    "mapping",
    "tasks",
    "distiller",
    "spaces",
    "timing",
    "runtimes",
    "targets",
    "report",
    "refit",
    "findings",
    "spend",
    "derive",
    "compare",
    "board",
    "cost",
    "measured",
    "turns",
    "latency",
    "export",
    "cache",
    "weights",
    "optimizers",
    "graph",
    "step",
    "checkpoint",
    "trainer",
    "loggers",
    "ledger",
    "ending",
    "status",
    "probe",
    "cifar_resnet",
    "clip",
    "born_again",
    "teacher",
    "trial",
    "packing",
    "engines",
    "bench",
    "shelf",
    "calibration",
    "check",
    "card",
    "predict",
    "ship",
    "files",
    "rounding",
    "exports",
    "workers",
    "actors",
    "finish",
    "run",
    "single",
    "objective",
    "__init__",
    "console",
    "terminal",
    "listing",
    "flags",
    "cli",
    "__main__",
)
# Within a folder, from the bottom up. In a folder of plug-ins there is one rule for all: below.
# What several plug-ins share stands in a module whose name begins with an underscore.
FLOORS = {
    "distiller": ("recipe", "adapters", "blend", "balance", "distiller"),
    "data": (
        "base",
        "decode",
        "policies",
        "views",
        "splits",
        "seen",
        "store",
        "feed",
        "digits",
        "folder",
        "parquet",
        "vision",
    ),
    "cache": ("parts", "key", "disk", "outputs"),
    "engines": ("proposals", "local", "cluster", "tune"),
    "cli": ("app", "study", "single", "export", "compare"),
    "report": (
        "words",
        "marks",
        "tables",
        "trials",
        "markup",
        "axes",
        "figures",
        "curves",
        "slices",
        "verdict",
        "drawings",
        "markdown",
        "page",
    ),
}
PLUGINS = ("students", "methods", "loggers", "runtimes", "targets", "export")


def modules() -> dict[str, Path]:
    """Return every module by its dotted path below the package, `__init__` included."""
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def imported(path: Path) -> Iterator[str]:
    """Yield the modules of kdsearch that one imports, late and for types included."""
    known = modules()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide the room"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.partition(".")[0] == "kdsearch":
                yield next(found for found in candidates(name) if found in known)


def candidates(name: str) -> Iterator[str]:
    """Yield the modules that `import name` may mean: itself, a name in its parent, and so on up."""
    parts = name.split(".")[1:]
    while parts:
        yield ".".join(parts)
        yield ".".join([*parts, "__init__"])
        parts.pop()
    yield "__init__"


MODULES = modules()


def room(module: str) -> str:
    return module.partition(".")[0]


def test_every_room_has_its_place() -> None:
    assert sorted({room(module) for module in MODULES}) == sorted(ROOMS)


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_what_stands_above_it(module: str) -> None:
    here = ROOMS.index(room(module))
    wrong = [
        name
        for name in imported(MODULES[module])
        if room(name) != room(module) and ROOMS.index(room(name)) > here
    ]
    assert wrong == []


@pytest.mark.parametrize("folder", FLOORS)
def test_a_folder_imports_one_way(folder: str) -> None:
    order = [*(f"{folder}.{name}" for name in FLOORS[folder]), f"{folder}.__init__"]
    assert sorted(order) == sorted(m for m in MODULES if room(m) == folder)
    for place, module in enumerate(order):
        inside = [name for name in imported(MODULES[module]) if room(name) == folder]
        assert [name for name in inside if order.index(name) >= place] == []


@pytest.mark.parametrize("folder", PLUGINS)
def test_a_plugin_imports_none_of_its_siblings(folder: str) -> None:
    for module, path in MODULES.items():
        if room(module) == folder and not module.endswith("__init__"):
            inside = {name for name in imported(path) if room(name) == folder}
            shared = {name for name in inside if name.rpartition(".")[2].startswith("_")}
            assert inside - shared <= {f"{folder}.base"}, module


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
    ids=["the package", "the values", "a study and its report", "names of plug-ins", "--help"],
)
def test_imports_only_what_it_needs(code: str, unwanted: set[str]) -> None:
    script = f"{code}\nimport sys\nprint(); print(sorted({unwanted!r} & set(sys.modules)))"
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines()[-1] == "[]"
