"""A file is written whole or not at all."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from kdsearch import atomic
from kdsearch.errors import StudyError


@pytest.mark.parametrize(("content", "found"), [("ü", "ü".encode()), (b"\xff", b"\xff")])
def test_write_replaces_the_whole_file(tmp_path: Path, content: str | bytes, found: bytes) -> None:
    atomic.write(tmp_path / "a", "long text")
    atomic.write(tmp_path / "a", content)
    assert (tmp_path / "a").read_bytes() == found
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    for path in ("file/child", "no/such/folder", "folder"):
        with pytest.raises(StudyError, match="cannot write"):
            atomic.write(tmp_path / path, "new")
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_block_that_raises_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="halfway"):
        _write_half(path)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "old")]


def _write_half(path: Path) -> None:
    with atomic.replacing(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError("halfway")


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    (tmp_path / "trials").mkdir()
    left = tmp_path / "trials" / f".curve.csv.{child.pid}-140.tmp"
    kept = [tmp_path / f".progress.json.{os.getpid()}-140.tmp", tmp_path / ".mine.tmp"]
    for file in (left, *kept):
        file.touch()
    atomic.remove_left_behind(tmp_path)
    assert not left.exists()
    assert all(file.exists() for file in kept)
