"""The live table and the plain lines say the same of a study."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from table_study import REQUEST, SPACE, look_up, opened

from kdsearch.cli.live import StudyConsole
from kdsearch.spec import Cost
from kdsearch.study.callbacks import Callbacks
from kdsearch.study.config import StudyConfig
from kdsearch.study.run_state import RunState
from kdsearch.study.study import OpenStudy
from kdsearch.study.trial_notes import TrialOutcome
from kdsearch.training.trainer import Epoch


def play(study: OpenStudy, console: StudyConsole) -> None:
    """Let six trials end, two at a time, and leave one running in its third epoch."""
    callbacks = Callbacks([console])
    callbacks.on_search_begin(RunState(total=10, budget=REQUEST.budget))
    beside = study.ask()
    callbacks.on_trial_begin(beside)
    for _ in range(6):
        requested = study.ask()
        callbacks.on_trial_begin(requested)
        record = study.tell(requested, replace(look_up(requested), seconds=30.0))
        front = study.front()
        callbacks.on_trial_end(record, front[-1] if front else None)
    epoch = Epoch(number=3, losses={}, val=0.1234, lr=0.1, seconds=1.0)
    callbacks.on_epoch(beside.number, epoch, 12)


def shown(path: Path, *, width: int, is_terminal: bool, config: StudyConfig = REQUEST) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=is_terminal, color_system=None)
    callback = StudyConsole(console=console)
    with opened(path, config) as study:
        play(study, callback)
    if is_terminal:
        out.seek(0)
        out.truncate()
        console.print(callback._render())
    return out.getvalue()


def test_the_table_shows_running_and_ended_trials_best_and_time(fast_path: Path) -> None:
    text = shown(fast_path / "live", width=120, is_terminal=True)
    (row,) = (line for line in text.splitlines() if "3/12" in line)
    assert row.split()[0] == "0"
    assert "12.34 %" in row
    assert "training" in row
    assert "Best: trial " in text
    assert "budget 15 MFLOPs" in text
    assert "6 of 10 trials: " in text
    assert "about 1 min 00 s left (2 at a time)" in text  # 4 trials of 30 s, two at a time


def test_nothing_is_wider_than_a_narrow_terminal(fast_path: Path) -> None:
    text = shown(fast_path / "narrow", width=60, is_terminal=True)
    assert all(len(line) <= 60 for line in text.splitlines())
    assert "3/12" in text


@pytest.mark.parametrize("width", [80, 140])
def test_names_of_students_and_methods_are_whole(fast_path: Path, width: int) -> None:
    long = {"resnet": "timm:mobilenetv3_small_100", "vit": "timm:vit_tiny_patch16_224"}
    space = SPACE.replace("name: kd", "name: kd_standardized")
    for family, name in long.items():
        space = space.replace(family, name)
    config = replace(REQUEST, space=space)
    text = shown(fast_path / f"long-{width}", width=width, is_terminal=True, config=config)
    assert all(len(line) <= width for line in text.splitlines())
    assert "\u2026" not in text
    words = text.split()
    assert words.count("kd_standardized") == 7  # six that ended, one that runs
    assert sum(words.count(name) for name in long.values()) == 8  # and the best


def test_a_line_of_a_refit_sets_its_seed_apart_from_its_accuracy(fast_path: Path) -> None:
    out = io.StringIO()
    callback = StudyConsole(console=Console(file=out, width=200))
    with opened(fast_path / "refit") as study:
        callback.on_search_begin(RunState(total=1, budget=REQUEST.budget))
        requested = study.ask_refit({**study.ask().params, "train.repeat": 1}, 0, is_control=False)
        cost = Cost(flops=2_000_000, params=2000)
        callback.on_trial_end(
            study.tell(requested, TrialOutcome(state="complete", cost=cost, val=0.1448)), None
        )
    assert " (seed 1) 14.48 % at 2 MFLOPs" in out.getvalue()


def test_no_terminal_gets_a_line_a_trial_and_one_forecast(fast_path: Path) -> None:
    lines = shown(fast_path / "plain", width=200, is_terminal=False).splitlines()
    trials = [line for line in lines if ", trial " in line]
    assert [line.split(", trial")[0] for line in trials] == [f"{i} of 10" for i in range(1, 7)]
    wanted = "more trials (2 at a time); --time-limit stops the search in time"
    assert sum(wanted in line for line in lines) == 1


def test_a_slow_trial_gets_a_line_when_it_begins(fast_path: Path) -> None:
    lines = shown(fast_path / "begins", width=200, is_terminal=False).splitlines()
    assert lines[0].startswith("Training trial 0: ")
    assert lines[0].endswith(", until epoch 10")
    begun = [line for line in lines if line.startswith("Training trial ")]
    assert len(begun) == 7  # each of these trials takes 30 s, and two begin before the first ends
