"""The log of a study holds no control characters, and a full disk prints no traceback."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from kdsearch.workflows.run import _log_to


def test_control_characters_are_escaped_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest keeps what reaches the root, and sends it between processes as UTF-8
    monkeypatch.setattr(logging.getLogger("kdsearch"), "propagate", False)
    with _log_to(tmp_path / "kdsearch.log"):
        logging.getLogger("kdsearch.x").warning("failed: \x1b[2J \udcff\n  line 2")
    text = (tmp_path / "kdsearch.log").read_text(encoding="utf-8")
    assert text.endswith("WARNING failed: \\x1b[2J \\udcff\n  line 2\n")


def test_a_full_disk_prints_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with _log_to(Path("/dev/full")):  # every write there fails: no space is left
        logging.getLogger("kdsearch.x").warning("a line")
    assert capsys.readouterr().err == ""
