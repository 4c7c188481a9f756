"""The examples of docs/python.md run, in order, in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from quick import quick

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def test_the_examples_of_the_python_page_run(
    fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fast_path)
    page = PAGE.read_text(encoding="utf-8")
    names: dict[str, object] = {}
    with quick():
        for found in BLOCK.finditer(page):
            line = page.count("\n", 0, found.start(1))
            exec(compile("\n" * line + found[1], str(PAGE), "exec"), names)
    assert (fast_path / "results" / "phones" / "report.html").is_file()
    assert "kdsearch.run" in page
