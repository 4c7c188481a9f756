"""The engine carries trials between a study and any function; it needs no torch for that."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from table_study import look_up, opened

from kdsearch.engines import local
from kdsearch.spec import TrialRecord
from kdsearch.study import Asked, Outcome


def test_n_trials_counts_what_the_study_holds_already(fast_path: Path) -> None:
    seen: list[TrialRecord] = []
    for n_trials in (2, 5, 3):
        with opened(fast_path / "counted") as study:
            local.run(study, [look_up], n_trials=n_trials, on_trial=seen.append)
            records = study.records()
    assert len(records) == 5
    assert seen == records


def test_a_control_does_not_count_as_a_trial_of_the_search(fast_path: Path) -> None:
    with opened(fast_path / "controlled") as study:
        local.run(study, [look_up], n_trials=1)
        local.run_one(study, study.ask_control({"student.family": "resnet"}, 0), look_up)
        local.run(study, [look_up], n_trials=2)
        assert [record.control_of for record in study.records()] == [None, 0, None]


def test_the_time_limit_is_looked_at_between_trials(fast_path: Path) -> None:
    ended: list[float] = []

    def slow(asked: Asked) -> Outcome:
        time.sleep(0.2)
        ended.append(time.perf_counter())
        return look_up(asked)

    started = time.perf_counter()
    with opened(fast_path / "limited") as study:
        local.run(study, [slow], n_trials=100, time_limit=0.3)
        assert [record.state for record in study.records()].count("running") == 0
    assert 1 <= len(ended) <= 2
    assert all(end - started >= 0.2 for end in ended)


def test_a_time_limit_of_zero_runs_nothing(fast_path: Path) -> None:
    with opened(fast_path / "no time") as study:
        local.run(study, [look_up], n_trials=1, time_limit=0)
        assert study.records() == []


def test_an_error_of_the_objective_leaves_the_study_to_go_on(fast_path: Path) -> None:
    """An evaluator turns its failures into outcomes; what it raises ends the run."""

    def breaks(_: Asked) -> Outcome:
        raise ZeroDivisionError

    path = fast_path / "broken"
    with opened(path) as study, pytest.raises(ZeroDivisionError):
        local.run(study, [breaks], n_trials=1)
    with opened(path) as study:
        local.run(study, [look_up], n_trials=1)
        lost, again = study.records()
    assert (lost.state, lost.params) == ("interrupted", again.params)


SCRIPT = """
import sys
from pathlib import Path
from table_study import opened, run_to
with opened(Path(sys.argv[1])) as study:
    print(len(run_to(study, 2)), sorted({"torch", "ray", "sklearn"} & set(sys.modules)))
"""


def test_a_table_needs_no_torch(fast_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(fast_path / "plain")],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "2 []"
