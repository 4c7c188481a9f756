"""Optional packages: messages name requirements, and no text installs another project's package."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from kdsearch.extras import EXTRAS, install
from kdsearch.version import VERSION

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# `pip install kdsearch`, in any quotes, with or without extras, flags and a version.
STRANGER = re.compile(r"""pip\s+install\s+(-\S+\s+)*['"]?kdsearch(?!-vision)\b""")
TEXTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile")),
    *(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts),
    *(ROOT / "kdsearch").rglob("*.py"),
    *(ROOT / "scripts").glob("*.sh"),
]


def test_extras_are_those_of_pyproject() -> None:
    declared = PROJECT["optional-dependencies"]
    assert {name: [requirement] for name, requirement in EXTRAS.items()} == declared


@pytest.mark.parametrize("name", EXTRAS)
def test_the_command_names_the_requirement_with_its_version(name: str) -> None:
    assert install(name) == f'pip install "{EXTRAS[name]}"'
    assert ">=" in install(name)


def test_the_version_is_that_of_pyproject() -> None:
    assert PROJECT["version"] == VERSION


def test_the_distribution_has_a_name_of_its_own_and_the_command_stays() -> None:
    assert PROJECT["name"] == "kdsearch-vision"
    assert list(PROJECT["scripts"]) == ["kdsearch"]


@pytest.mark.parametrize("text", ["pip install kdsearch[ray]", "pip install -U 'kdsearch>=1'"])
def test_the_search_finds_the_other_project(text: str) -> None:
    assert STRANGER.search(text)


def test_no_text_installs_the_other_project() -> None:
    found = [path for path in TEXTS if STRANGER.search(path.read_text(encoding="utf-8"))]
    assert found == []
