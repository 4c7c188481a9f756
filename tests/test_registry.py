"""The registry finds plug-ins by file name and a user's own by path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kdsearch.errors import SpecError
from kdsearch.registry import Registry, import_object, neighbours

BASE = "class Base: ...\n"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    name = f"plugins_{request.node.name.replace('[', '_').replace(']', '')}"
    folder = tmp_path / name
    folder.mkdir()
    header = f"from {name}.base import Base\n"
    (folder / "__init__.py").touch()
    (folder / "base.py").write_text(BASE)
    (folder / "red.py").write_text(header + "class Red(Base): ...\nclass _Part(Base): ...\n")
    (folder / "blue.py").write_text(header + "class Blue(Base): ...\n")
    (folder / "_hidden.py").write_text(header + "class Hidden(Base): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def registry(package: str) -> Registry[object]:
    return Registry(package, f"{package}.base:Base", what="colour", aliases={"crimson": "red"})


def test_names_are_the_public_files_but_base(package: str) -> None:
    assert registry(package).names() == ("blue", "red")


def test_names_import_no_plugin(package: str) -> None:
    registry(package).names()

    assert not any(name.startswith(f"{package}.") for name in sys.modules)


@pytest.mark.parametrize("name", ["red", "crimson"])
def test_get_returns_the_files_public_class(package: str, name: str) -> None:
    assert registry(package).get(name).__name__ == "Red"


def test_base_may_be_the_class_itself(package: str) -> None:
    base = import_object(f"{package}.base:Base", what="colour")
    assert isinstance(base, type)

    assert Registry(package, base, what="colour").get("blue").__name__ == "Blue"


def test_an_unknown_name_is_refused_with_the_nearest_and_all_names(package: str) -> None:
    with pytest.raises(
        SpecError, match=r"unknown colour 'reed' \(did you mean 'red'\?\); known: blue, red"
    ):
        registry(package).get("reed")


def test_users_own_file_is_found_by_path(package: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text(f"from {package}.base import Base\nclass Green(Base): ...\n")

    assert registry(package).get(f"{mine}:Green").__name__ == "Green"
    assert registry(package).get(f"{package}.red:Red").__name__ == "Red"


def test_a_file_may_define_dataclasses_under_future_annotations(
    package: str, tmp_path: Path
) -> None:
    file = tmp_path / "shade.py"
    file.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        f"from {package}.base import Base\n"
        "@dataclass(frozen=True, slots=True)\nclass Shade(Base):\n    depth: int = 3\n"
    )
    found = registry(package).get(f"{file}:Shade")
    assert found().depth == 3
    assert sys.modules[found.__module__].Shade is found


@pytest.mark.parametrize("line", ["from hues import DEEP", "from .hues import DEEP"])
def test_a_file_may_import_the_modules_beside_it(line: str, tmp_path: Path) -> None:
    before = list(sys.path)
    for folder, depth in (("a", 3), ("b", 5)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "hues.py").write_text(f"DEEP = {depth}\n")
        (tmp_path / folder / "mine.py").write_text(f"{line}\n")
    for folder, depth in (("a", 3), ("b", 5), ("a", 3)):
        assert import_object(f"{tmp_path / folder / 'mine.py'}:DEEP", what="colour") == depth
    assert sys.path == before


def test_a_function_may_import_its_neighbours_when_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "tints.py").write_text("PALE = 7\n")
    path = f"{tmp_path / 'mine.py'}:make"
    (tmp_path / "mine.py").write_text("def make():\n    from tints import PALE\n    return PALE\n")
    make = import_object(path, what="colour")
    assert callable(make)
    with neighbours(path):
        assert make() == 7


ERRORS = {
    "1 / 0": "ZeroDivisionError: division by zero ({}, line 2)",
    "def f(:": "SyntaxError: invalid syntax (mine.py, line 2) ({}, line 2)",
    "import shades": "ZeroDivisionError: division by zero ({}, line 1)",
    "from .none import x": "ModuleNotFoundError",
}


@pytest.mark.parametrize("code", ERRORS)
def test_an_error_inside_a_file_names_the_file_and_the_line(code: str, tmp_path: Path) -> None:
    (tmp_path / "shades.py").write_text("x = 1 / 0\n")
    (tmp_path / "mine.py").write_text(f"'A file.'\n{code}\n")
    at = tmp_path / ("shades.py" if "shades" in code else "mine.py")
    with pytest.raises(SpecError) as caught:
        import_object(f"{tmp_path / 'mine.py'}:x", what="colour")
    assert ERRORS[code].format(at) in str(caught.value)


def test_a_class_that_is_no_plugin_is_refused_with_the_base_name(package: str) -> None:
    with pytest.raises(SpecError, match="is not a Base class"):
        registry(package).get("pathlib:Path")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no.such.module:Thing", "cannot import 'no.such.module'"),
        ("pathlib:Paht", r"pathlib defines no 'Paht' \(did you mean 'Path'\?\)"),
        ("missing.py:Thing", "there is no file 'missing.py'"),
        (":Thing", "expected 'package.module:name'"),
    ],
)
def test_a_bad_path_is_refused_with_the_reason(path: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        import_object(path, what="colour")


def test_listing_the_packages_own_plugins_imports_no_torch() -> None:
    code = (
        "import sys; from kdsearch.models.students import FAMILIES; "
        "from kdsearch.methods import METHODS; "
        "assert FAMILIES.names() and METHODS.names(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
