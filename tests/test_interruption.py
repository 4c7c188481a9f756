"""A study that is killed, stopped or run twice: nothing that was done is lost or done again."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SPACE = """
student:
  family: {choice: {resnet: {width: {float: [0.125, 0.25]}, depth: {int: [3, 4]}}}}
method: {name: {choice: {kd: {temperature: {float: [1.0, 8.0]}}, none: }}}
train: {epochs: 2}
"""
TRIALS = 6
NUMBERING = ("trial", "seconds", "control_of", "reused_from", "reason")
Row = tuple[str, ...]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the teacher is trained already and one study has run through."""
    root = tmp_path_factory.mktemp("out")
    (root / "space.yaml").write_text(SPACE)
    assert finish(root, "whole") == 0
    return root


def started(root: Path, name: str) -> subprocess.Popen[bytes]:
    command = ["run", "--out", root, "--name", name, "--trials", TRIALS, "--budget-ms", 10]
    more = ["--space", root / "space.yaml", "--teacher-epochs", 2]
    return subprocess.Popen(
        [sys.executable, "-m", "kdsearch", *map(str, command + more)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(root: Path, name: str) -> int:
    process = started(root, name)
    process.communicate(timeout=120)
    return process.returncode


def wait_for_trial(root: Path, name: str, number: int) -> None:
    """Wait until a trial has been trained; a later one is running or about to."""
    for _ in range(1200):
        if (root / name / "trials" / f"{number:06d}").is_dir():
            return
        time.sleep(0.05)
    pytest.fail(f"trial {number} of {name} did not end within a minute")


def trials(root: Path, name: str) -> list[Row]:
    """Return what the search decided and found: no times, no numbers, nothing interrupted."""
    with (root / name / "trials.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["state"] != "interrupted"]
    kept = [name for name in rows[0] if name not in NUMBERING]
    return [tuple(row[name] for name in kept) for row in rows]


def test_killed_and_run_again_it_is_as_if_nothing_had_been(out: Path) -> None:
    name = "killed"
    process = started(out, name)
    wait_for_trial(out, name, 1)
    time.sleep(0.3)
    process.kill()
    process.communicate()
    assert finish(out, name) == 0
    assert trials(out, name) == trials(out, "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_leaves_a_report_and_says_how_to_go_on(out: Path, number: int) -> None:
    name = f"stopped-{number}"
    process = started(out, name)
    wait_for_trial(out, name, 1)
    asked = time.monotonic()
    os.kill(process.pid, number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - asked < 10
    assert f"kdsearch run --name {name}".encode() in said
    assert (out / name / "front.json").is_file()
    assert (out / name / "report.html").is_file()


def test_a_second_driver_is_refused(out: Path) -> None:
    first = started(out, "shared")
    wait_for_trial(out, "shared", 0)
    second = started(out, "shared")
    said, _ = second.communicate(timeout=60)
    first.kill()
    first.communicate()
    assert second.returncode == 2
    assert b"another process" in said


def test_the_winner_is_trained_again_to_the_same_accuracy(out: Path) -> None:
    config = out / "whole" / "best" / "config.yaml"
    command = ["distill", "--config", str(config), "--out", str(out), "--name", "again", "--quiet"]
    subprocess.run([sys.executable, "-m", "kdsearch", *command], check=True, timeout=120)
    first, again = (out / name / "best" / "student.onnx" for name in ("whole", "again"))
    assert first.read_bytes() == again.read_bytes()
