"""The whole run in a terminal of 80 and of 140 columns: nothing is cut, and the end is a box."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from shell import QUICK

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]
COLUMNS = (80, 140)
FAMILY = "my_family.py:Plain"  # with its folder as long as many names of timm
EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "my_family.py"
SPACE = f"""\
student:
  family:
    choice:
      own_students/{FAMILY}: {{width: {{float: [0.25, 0.5]}}}}
      mobilenet: {{width: {{float: [0.125, 0.25]}}, depth: 6}}
  resolution: 16
method:
  name: kd_standardized
train: {{epochs: 1}}
"""
OPTIONS = ("--subset", "200", "--teacher-epochs", "1", "--trials", "2", "--budget-mflops", "9")
NAMES = ("kd_standardized", f"own_students/{FAMILY}", "mobilenet")
STAGES = ("Reading the images", "Training the teacher", "Evaluating the teacher", "Exporting trial")
ANSWERS = ("Accuracy on test", "Size", "Latency", "Computation", "Did distillation help?")


class Snapshot:
    """A run in tmux: its screen now and then, and all of it at the end, rows and lines."""

    def __init__(self, rows: list[str], lines: list[str], screens: list[str]) -> None:
        self.rows = rows
        self.lines = lines  # rows that the terminal broke are joined
        self.screens = screens


@contextmanager
def terminal(folder: Path, columns: int, command: str) -> Iterator[Callable[..., str]]:
    """Start a command in a new tmux server; yield a function that runs one of tmux's commands."""
    settings = folder / "tmux.conf"
    settings.write_text("set -g history-limit 20000\n")
    server = ["tmux", "-S", str(folder / "socket"), "-f", str(settings)]

    # rich prefers these to the size of the terminal
    inherited = {name: os.environ[name] for name in {*os.environ} - {"COLUMNS", "LINES"}}

    def tmux(*words: str) -> str:
        line = [*server, *words]
        done = subprocess.run(line, env=inherited, capture_output=True, text=True, check=True)
        return done.stdout

    size = ("-x", str(columns), "-y", "50")
    tmux("new-session", "-d", *size, "-c", str(folder), command)
    try:
        yield tmux
    finally:
        tmux("kill-server")


@cache
def snapshot(columns: int) -> Snapshot:
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "space.yaml").write_text(SPACE, encoding="utf-8")
        (folder / "own_students").mkdir()
        shutil.copy(EXAMPLE, folder / "own_students" / "my_family.py")
        (folder / "quick_run.py").write_text(QUICK, encoding="utf-8")
        line = [sys.executable, "quick_run.py", "run", "--space", "space.yaml", *OPTIONS]
        line += ["--name", "snapshot"]
        # The pane outlives the run: tmux 3.3 does not always state how a pane's command ended.
        command = f"{shlex.join(line)}; echo $? >code.part; mv code.part code; exec sleep 1000"
        ended, screens = folder / "code", list[str]()
        end = time.monotonic() + 1800
        with terminal(folder, columns, command) as tmux:
            while not ended.exists():
                assert time.monotonic() < end, screens[-1]
                screens.append(tmux("capture-pane", "-p"))
                time.sleep(0.5)
            rows = tmux("capture-pane", "-p", "-S", "-").splitlines()
            assert ended.read_text() == "0\n", "\n".join(rows)
            lines = tmux("capture-pane", "-p", "-J", "-S", "-").splitlines()
    return Snapshot(*([line.rstrip() for line in each] for each in (rows, lines)), screens)


def words_of(lines: list[str]) -> set[str]:
    """Return the words of lines without numbers, which differ between runs."""
    words = " ".join(lines).split()
    return {word for word in words if re.search("[a-z]", word) and not re.search(r"\d", word)}


@pytest.mark.parametrize("columns", COLUMNS)
def test_no_line_is_wider_than_the_terminal(columns: int) -> None:
    """The terminal itself breaks no line: each is as short as it was printed."""
    found = snapshot(columns)
    assert [line for line in found.lines if len(line) > columns] == []
    assert max(map(len, found.rows)) > columns / 2


def test_no_word_is_cut() -> None:
    """A word that one width cuts is whole in the other."""
    narrow, wide = map(snapshot, COLUMNS)
    for found, other in ((narrow, wide), (wide, narrow)):
        whole = words_of([*other.rows, *"\n".join(other.screens).splitlines()])
        assert words_of(found.rows) - whole - {"s", "min"} == set()
    cut = [screen for each in (narrow, wide) for screen in each.screens if "\u2026" in screen]
    assert cut == []


@pytest.mark.parametrize("columns", COLUMNS)
def test_stages_are_named_and_names_are_whole(columns: int) -> None:
    found = snapshot(columns)
    for text in (*NAMES, *STAGES):
        assert any(text in screen for screen in ["\n".join(found.rows), *found.screens]), text
    assert any("student + method" in screen for screen in found.screens)  # the live table


@pytest.mark.parametrize("columns", COLUMNS)
def test_the_end_is_a_box_then_files_then_the_next_command(columns: int) -> None:
    rows = snapshot(columns).rows
    top = next(i for i, row in enumerate(rows) if row.startswith("╭─ Result of snapshot "))
    bottom = next(i for i, row in enumerate(rows) if i > top and row.startswith("╰─"))
    box = rows[top + 1 : bottom]
    assert all(len(row) == 80 and row[0] == row[-1] == "│" for row in box)
    for answer in ANSWERS:
        assert any(row.startswith(f"│ {answer} ") for row in box), answer
    after = rows[bottom + 1 :]
    assert after[:3] == [
        "Model: results/snapshot/best/student.onnx",
        "Report: results/snapshot/report.html",
        "Retrain: kdsearch distill --config results/snapshot/best/config.yaml",
    ]
    assert "Next:" in after
    assert any("`kdsearch " in row for row in after)
