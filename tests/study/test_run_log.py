"""The log of a study: what all its runs took, and the progress that another shell reads."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from table_study import look_up, opened, run_to

from kdsearch.errors import StudyError
from kdsearch.report.status import status
from kdsearch.spec import TrialRecord
from kdsearch.study.callbacks import Callbacks
from kdsearch.study.run_log import Progress, RunLog, read_progress, spent, write_progress
from kdsearch.study.run_state import RunState, forecast
from kdsearch.study.study import OpenStudy
from kdsearch.training.trainer import Epoch


def log_of(study: OpenStudy, *, ago: float = 0.0) -> RunLog:
    return RunLog(study, device="cpu", started=time.perf_counter() - ago)


def test_the_time_of_every_run_counts(fast_path: Path) -> None:
    path = fast_path / "three runs"
    with opened(path) as study:
        with log_of(study, ago=10):
            pass
        with pytest.raises(KeyboardInterrupt), log_of(study, ago=20):
            raise KeyboardInterrupt
        with pytest.raises(ZeroDivisionError), log_of(study, ago=40):
            raise ZeroDivisionError
    with opened(path) as study:
        assert [run.end for run in study.facts.runs] == ["ended", "interrupted", "failed"]
        assert spent(study).wall == pytest.approx(70, abs=5)
    assert not (path / "progress.json").exists()


def test_the_time_of_a_killed_run_is_taken_over_by_the_next(fast_path: Path) -> None:
    path = fast_path / "killed"
    with opened(path) as study:
        log_of(study, ago=100)  # never closed
    with opened(path) as study:
        with log_of(study, ago=10):
            pass
        assert [run.end for run in study.facts.runs] == ["killed", "ended"]
        assert spent(study).wall == pytest.approx(110, abs=5)


def test_a_run_is_closed_once(fast_path: Path) -> None:
    with opened(fast_path / "once") as study:
        with log_of(study) as log:
            log.end("ended")
        assert len(study.facts.runs) == 1


def test_the_spend_counts_epochs_and_what_was_never_trained(fast_path: Path) -> None:
    with opened(fast_path / "spent") as study:
        study.update_facts(teacher_seconds=3.0)
        for state in ("complete", "pruned", "rejected"):
            proposal = study.ask()
            outcome = replace(look_up(proposal), state=state, seconds=2.0, curve=(0.1, 0.2))
            if state == "rejected":
                outcome = replace(outcome, curve=())
            study.tell(proposal, replace(outcome, val=0.5 if state == "complete" else None))
        found = spent(study)
    assert (found.epochs, found.rejected, found.reused) == (4, 1, 0)
    assert found.epochs_saved == 10 - 2  # ten epochs are the default
    assert found.trials == {"cpu": 6.0}
    assert "6.0 s of trials on cpu, 3.0 s for the teacher, 4 epochs trained" in str(found)


def trained(seconds: Sequence[float], *, state: str = "complete") -> list[TrialRecord]:
    return [
        TrialRecord(number=i, state=state, params={}, seconds=second, curve=(0.1,))
        for i, second in enumerate(seconds)
    ]


def test_the_forecast_is_the_mean_times_what_is_left_over_those_at_once() -> None:
    assert forecast(trained([10.0]), 18, at_once=1) is None
    assert forecast(trained([10.0, 20.0]), 18, at_once=1) == 15 * 18
    assert forecast(trained([10.0, 20.0]), 18, at_once=2) == 15 * 9
    cheap = replace(trained([0.0])[0], state="rejected", curve=())
    assert forecast([*trained([10.0, 20.0]), cheap], 3, at_once=1) == 30
    assert forecast(trained([10.0, 20.0]), -1, at_once=1) == 0


def test_status_shows_a_running_study_and_writes_nothing(fast_path: Path) -> None:
    path = fast_path / "observed"
    with opened(path) as study, log_of(study, ago=7) as log:
        study.update_facts(trials=9)
        assert status(path).counts.complete == 0
        run_to(study, 5)
        proposal = study.ask()
        callbacks = Callbacks([log])
        callbacks.on_search_begin(RunState(total=9))
        callbacks.on_trial_begin(proposal)
        epoch = Epoch(number=3, losses={}, val=0.25, lr=0.1, seconds=1.0)
        log._written = 0.0  # a second has passed
        callbacks.on_epoch(proposal.number, epoch, 10)
        before = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
        found = status(path)
        after = {file.name: file.stat().st_mtime_ns for file in path.iterdir()}
        study.tell(proposal, look_up(proposal))
        best = study.front()[-1]
    before.pop("study.db-shm"), after.pop("study.db-shm")  # SQLite's marks of readers
    assert before == after
    assert (found.state, found.trials) == ("running", 9)
    (running,) = found.running
    assert (running.number, running.epoch, running.epochs, running.val) == (5, 3, 10, 0.25)
    assert found.best is not None
    assert best.val is not None
    assert found.best.val <= best.val
    assert found.hypervolumes[-1] == 1.0
    assert list(found.hypervolumes) == sorted(found.hypervolumes)
    assert found.seconds_spent == pytest.approx(7, abs=5)
    assert "trial 5" in "\n".join(found.lines())
    assert status(path).state == "ended"


def test_status_forecasts_the_whole_plan_as_the_run_itself_does(fast_path: Path) -> None:
    """Two looks of two epochs took 2 s each; 44 epochs of the plan are left, not 7 looks."""
    looks = [replace(record, curve=(0.5, 0.5)) for record in trained([2.0, 2.0])]
    with opened(fast_path / "planned") as study, log_of(study) as log:
        study.update_facts(trials=9)
        state = RunState(looks, total=9, epochs=48)
        log.on_search_begin(state)
        found = status(study.path)
    assert found.seconds_left == state.seconds_left() == 44
    assert status(fast_path / "planned").seconds_left is None


def held(progress: Progress, **changes: object) -> Progress:
    """Return the progress as that of another process."""
    return replace(progress, holder=replace(progress.holder, **changes))  # type: ignore[arg-type]


def test_status_knows_a_killed_run_from_a_running_one(fast_path: Path) -> None:
    path = fast_path / "dead"
    with opened(path) as study:
        log_of(study)
    progress = read_progress(path)
    assert progress is not None
    assert status(path).state == "running"
    write_progress(path, held(progress, began="1"))  # a number used again
    assert status(path).state == "killed"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write_progress(path, held(progress, pid=gone.pid))
    found = status(path)
    assert found.state == "killed"
    assert f"kdsearch run --name {path.name}" in found.resume
    write_progress(path, held(progress, boot="another", host="elsewhere"))
    assert status(path).state.startswith("running on another machine")


def test_a_study_without_a_trial_or_a_run_has_a_status(fast_path: Path) -> None:
    with opened(fast_path / "new"):
        pass
    found = status(fast_path / "new")
    assert (found.state, found.trials, found.best, found.hypervolumes) == ("new", None, None, ())
    assert found.lines()[0] == "new: new"


def test_a_study_that_is_not_there_has_none(fast_path: Path) -> None:
    with pytest.raises(StudyError, match="there is no study"):
        status(fast_path / "nowhere")


def test_a_damaged_progress_names_the_remedy(fast_path: Path) -> None:
    with opened(fast_path / "torn") as study:
        (study.path / "progress.json").write_text("{")
        with pytest.raises(StudyError, match="delete it"):
            log_of(study)


SCRIPT = """
import sys
from pathlib import Path
from kdsearch.report.status import status
import dataclasses, json
print(json.dumps(dataclasses.asdict(status(Path(sys.argv[1])))))
print(sorted({"torch", "ray", "timm"} & set(sys.modules)))
"""


def test_a_status_needs_no_torch(fast_path: Path) -> None:
    with opened(fast_path / "plain") as study:
        run_to(study, 2)
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(fast_path / "plain")],
        capture_output=True,
        text=True,
        check=True,
    )
    message, imported = found.stdout.splitlines()
    assert imported == "[]"
    assert (
        json.loads(message)["counts"]["complete"] + json.loads(message)["counts"]["rejected"] <= 2
    )


def test_the_time_left_of_a_plan_follows_from_its_epochs() -> None:
    """Looks of 2 epochs took 1 s an epoch, of 48; a resumed trial counts its longest training."""

    def record(number: int, epochs: int, kind: int | None = None) -> TrialRecord:
        curve = (0.5,) * epochs
        return TrialRecord(
            number=number,
            state="complete",
            params={},
            curve=curve,
            seconds=float(epochs),
            control_of=kind,
        )

    state = RunState([record(0, 2)], total=4, epochs=48)
    state.at_once = 1
    assert state.seconds_left() is None
    state.end(record(1, 2), None)
    assert state.seconds_left() == 44
    state.end(record(2, 2, kind=1), None)
    state.end(record(1, 38), None)
    assert state.seconds_left() == 48 - 2 - 2 - 38
    assert [ended.number for ended in state.ended] == [0, 1]
