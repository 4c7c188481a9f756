"""A study on Ray finds what a study here finds, and ends as one."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
from shell import SPACE, Shell, ended_trials, run_line, start

from kdsearch.study.open import load_study
from kdsearch.study.study import searched

pytest.importorskip("ray")
SLOW = SPACE.replace("epochs: 1", "epochs: 4")
ON_RAY = ("--engine", "ray")


@pytest.mark.slow
def test_a_study_on_ray_finds_what_one_here_does_and_resumes_with_two_workers(
    shell: Shell,
) -> None:
    line = ("--budget-mflops", "1", "--trials", "3", "--json")
    shown = []
    for name, engine in (("here", ()), ("there", ON_RAY)):
        answer = shell.run("--name", name, *line, *engine, space=SLOW)
        assert answer.code == 0, answer
        assert (answer.stdout.count("\n"), answer.stderr) == (1, "")
        shown.append(ended_trials(shell.out / name))
        assert not (shell.out / name / "unfinished").exists()
    assert shown[0] == shown[1]
    found = [sorted((shell.out / name).glob("trials/*/*.csv")) for name in ("here", "there")]
    assert [file.parent.name for file in found[0]] == [file.parent.name for file in found[1]]
    before = searched(load_study(shell.out / "here").records())
    again = shell.run(
        "--name", "here", *line, "--trials", "6", "--workers", "2", *ON_RAY, space=SLOW
    )
    assert again.code == 0, again
    after = searched(load_study(shell.out / "here").records())
    assert len(after) == 6
    for old, new in zip(before, after, strict=False):  # more trials, and more of them resume
        assert (new.state, new.params) == (old.state, old.params)
        assert new.curve[: len(old.curve)] == old.curve


@pytest.mark.slow
def test_ctrl_c_ends_ray_and_keeps_what_ended(shell: Shell) -> None:
    line = run_line(shell.out, shell.folder, "--name", "stopped-on-ray", space=SLOW)
    line = [*line, "--trials", "400", "--workers", "2", *ON_RAY]
    with start(line, start_new_session=True) as driver:
        assert driver.stdout is not None
        next(text for text in driver.stdout if text.startswith("1 of 400, trial"))
        os.killpg(driver.pid, signal.SIGINT)
        _, message = driver.communicate(timeout=60)
    assert driver.returncode == 130
    kept = re.fullmatch(r"kdsearch: interrupted; (\d+) of 400 trials are kept. .*\n", message)
    assert kept is not None, message
    assert len(ended_trials(shell.out / "stopped-on-ray")) == int(kept[1]) >= 1
    until = time.monotonic() + 30
    while left := _ray_of(driver.pid):
        assert time.monotonic() < until, left
        time.sleep(0.1)


def _ray_of(session: int) -> list[str]:
    """Return what still runs in a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, of = stat.read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state != "Z":
                found.append((stat.parent / "cmdline").read_text())
        except OSError:  # it has just ended
            continue
    return found


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (("--engine", "spark"), "--engine 'spark': expected local or ray"),
        (("--engine", "rai"), "(did you mean 'ray'?)"),
        (
            ("--ray-address", "auto"),
            "auto is for trials on Ray: give --engine ray too",
        ),
        (("--gpus-per-trial", "0.5"), "--gpus-per-trial 0.5 is for trials on Ray"),
        ((*ON_RAY, "--ray-address", "ray://head:10001"), "expected none, auto or HOST:PORT"),
        ((*ON_RAY, "--gpus-per-trial", "2"), "--gpus-per-trial 2: expected above 0 and up to 1"),
        (
            (*ON_RAY, "--gpus-per-trial", "0.5", "--device", "cpu"),
            "--gpus-per-trial 0.5: trials run on the cpu; leave it out, or give --device cuda",
        ),
    ],
)
def test_flags_that_cannot_be_are_refused(shell: Shell, flags: tuple[str, ...], shown: str) -> None:
    assert shown in shell.refused_run(*flags)
