"""Types command lines: in this process for speed, as a process of its own for signals."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest

from kdsearch.__main__ import main
from kdsearch.study.open import load_study
from kdsearch.study.study import searched

SPACE = """\
student:
  family:
    choice:
      resnet:
        width: {float: [0.125, 0.25]}
        depth: {int: [3, 4]}
  resolution: {choice: [8]}
method:
  name:
    choice:
      kd:
        temperature: {float: [2.0, 8.0], log: true}
      at:
        weight: {float: [100.0, 10000.0], log: true}
train:
  epochs: 1
  lr: {float: [0.04, 0.3], log: true}
"""


# Attention maps weigh so much that only a label teaches the student.
DROWNED = (
    SPACE.replace("      kd:\n        temperature: {float: [2.0, 8.0], log: true}\n", "")
    .replace("[100.0, 10000.0]", "[1.0e+8, 1.0e+9]")
    .replace("epochs: 1", "epochs: 2")
)
SHAPES = {
    "plain": ("--budget-mflops", "1", "--budget-ms", "10"),
    "refitted": ("--budget-mflops", "1", "--trials", "3", "--refit", "2", "--seeds", "2"),
    "drowned": ("--budget-mflops", "1", "--trials", "1"),
}
SPACES = {"drowned": DROWNED}


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command ended, and what it printed."""

    code: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class Finished:
    """A study that has ended, and what its run printed."""

    path: Path
    stdout: str


class Shell:
    """Runs `kdsearch` in this process, in the shared results folder."""

    def __init__(self, out: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.out = out
        self.folder = folder
        self._capsys = capsys

    def type(self, *arguments: str) -> Answer:
        """Run one command line as it is."""
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        shown = self._capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Answer(left.value.code, shown.out, shown.err)

    def run(self, *arguments: str, space: str = SPACE) -> Answer:
        """Search with a tiny space and a teacher of one epoch."""
        return self.type(*run_line(self.out, self.folder, *arguments, space=space))

    def refused(self, *arguments: str) -> str:
        """Type a command that cannot be; return the one short message."""
        return self._message(self.type(*arguments, "--out", str(self.out)))

    def refused_run(self, *arguments: str, space: str = SPACE) -> str:
        """Ask for a search that cannot be; return the one short message."""
        return self._message(self.run(*arguments, space=space))

    @staticmethod
    def _message(answer: Answer) -> str:
        assert answer.code == 2, answer
        message = answer.stderr
        assert message.startswith("kdsearch: ")
        assert message.count("kdsearch: ") == 1
        assert message.count("\n") <= 5
        assert "Traceback" not in message
        assert ", trial 0: " not in answer.stdout
        return message


Studies: TypeAlias = Callable[[str], Finished]
Copies: TypeAlias = Callable[[str], Shell]


def run_line(out: Path, folder: Path, *arguments: str, space: str = SPACE) -> list[str]:
    """Return the arguments of a tiny search."""
    file = folder / "space.yaml"
    file.write_text(space, encoding="utf-8")
    line = ["run", "--out", str(out), "--space", str(file)]
    return [*line, "--teacher-epochs", "1", "--trials", "2", *arguments]


QUICK = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job's children
from quick import quick
from kdsearch.__main__ import main
with quick():
    main(sys.argv[1:])
"""


def start(arguments: Sequence[str], *, start_new_session: bool = False) -> subprocess.Popen[str]:
    """Start `kdsearch` as a process of its own, in which studies are quick."""
    return subprocess.Popen(
        [sys.executable, "-c", QUICK, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=start_new_session,
    )


def ended_trials(path: Path) -> list[tuple[object, ...]]:
    """Return what a study found, oldest first: state, parameters, accuracy, curve, FLOPs.

    Latencies of the front may be measured after the search.
    """
    return [
        (r.state, dict(r.params), r.val, r.curve, r.cost and r.cost.flops)
        for r in searched(load_study(path).records())
    ]


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder but the lock, the log and SQLite's working files.

    A sound database counts by what it says: its pages may come from its log at any time.
    """
    left_out = (".lock", "study.db-wal", "study.db-shm")
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return {str(f.relative_to(folder)): _content(f) for f in files if f.name not in left_out}


def _content(file: Path) -> bytes:
    if file.name == "study.db":
        with (
            contextlib.suppress(sqlite3.DatabaseError),
            contextlib.closing(sqlite3.connect(file)) as connection,
        ):
            return "\n".join(connection.iterdump()).encode()
    return file.read_bytes()
