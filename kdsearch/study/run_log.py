"""The account of a study's runs: progress.json while one runs, a fact of the study after it.

The driver replaces progress.json at most once a second, and when a trial begins; a run that ends
removes it. A file that is left is that of a killed run, whose time counts up to the last write.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, ClassVar, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from kdsearch import atomic
from kdsearch.documents import mistake_in
from kdsearch.errors import BudgetError, StudyError, TrialsFailedError
from kdsearch.spec import TrialRecord
from kdsearch.study.callbacks import Callback
from kdsearch.study.facts import Run
from kdsearch.study.formatting import SPACE, counted, duration
from kdsearch.study.lease import Holder
from kdsearch.study.run_state import RunningTrial, RunState, planned_epochs
from kdsearch.study.study import OpenStudy
from kdsearch.study.trial_notes import Proposal

if TYPE_CHECKING:
    from kdsearch.training.trainer import Epoch

PROGRESS = "progress.json"
ENDED, INTERRUPTED, FAILED, KILLED = "ended", "interrupted", "failed", "killed"
T = TypeVar("T")
_EVERY = 1.0  # second between two writes of the file


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A run and its process at `updated` (seconds since 1970).

    at_once, seconds_left: see RunState.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    holder: Holder
    began: str
    device: str
    updated: float
    seconds: float
    at_once: int = 0
    seconds_left: float | None = None
    running: tuple[RunningTrial, ...] = ()


def read_progress(path: Path) -> Progress | None:
    """Return the progress of the study at `path`; None where no run is under way."""
    return read_json(path / PROGRESS, Progress)


def read_json(file: Path, kind: type[T]) -> T | None:
    """Return what a file holds, None where there is none. Raises StudyError for a damaged one."""
    try:
        return TypeAdapter(kind).validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise StudyError(f"{file} is damaged ({mistake_in(error)}); delete it") from error


def write_progress(path: Path, progress: Progress) -> None:
    """Replace the file."""
    atomic.write(path / PROGRESS, json.dumps(asdict(progress)))


class RunLog(Callback, AbstractContextManager["RunLog"]):
    """Keeps the account of one run; a context, which closes it. It adds a killed run's first.

    started: by `time.perf_counter`.
    """

    def __init__(self, study: OpenStudy, *, device: str, started: float) -> None:
        self._study = study
        self._started = started
        self._written = 0.0
        self._lock = Lock()
        self._is_open = True
        self._state = RunState()
        left = read_progress(study.path)
        if left is not None:
            self._add(left, KILLED)
        self._progress = Progress(
            holder=Holder.here(),
            began=datetime.now(UTC).isoformat(timespec="seconds"),
            device=device,
            updated=time.time(),
            seconds=0.0,
        )
        self._write()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Close the account with how the run ended."""
        if error is None or isinstance(error, BudgetError | TrialsFailedError):
            self.end(ENDED)
        else:
            self.end(INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED)

    def end(self, how: str) -> None:
        """Add the run to the study's facts, once."""
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._add(self._now(), how)
                (self._study.path / PROGRESS).unlink(missing_ok=True)

    def on_search_begin(self, state: RunState) -> None:
        """Write the state from now on."""
        self._state = state
        self._write()

    def on_trial_begin(self, proposal: Proposal) -> None:
        """Write the running trials."""
        self._write()

    def on_epoch(self, number: int, epoch: Epoch, epochs: int) -> None:
        """Write the running trials, once a second."""
        self._write(_EVERY)

    def on_trial_end(self, record: TrialRecord, best: TrialRecord | None) -> None:
        """Write the running trials, once a second."""
        self._write(_EVERY)

    def _now(self) -> Progress:
        return replace(
            self._progress,
            updated=time.time(),
            seconds=time.perf_counter() - self._started,
            at_once=self._state.at_once,
            seconds_left=self._state.seconds_left(),
            running=tuple(self._state.running.values()),
        )

    def _write(self, every: float = 0.0) -> None:
        with self._lock:
            if self._is_open and time.perf_counter() - self._written >= every:
                self._written = time.perf_counter()
                write_progress(self._study.path, self._now())

    def _add(self, progress: Progress, how: str) -> None:
        run = Run(began=progress.began, seconds=progress.seconds, device=progress.device, end=how)
        self._study.update_facts(runs=(*self._study.facts.runs, run))


@dataclass(frozen=True, slots=True, kw_only=True)
class Spend:
    """What all runs of a study took.

    wall: seconds of the runs, the teacher's training included. trials: seconds by device, summed
    over trials that may have run at the same time. epochs_saved: planned ones of pruned trials.
    rejected: candidates over the budget. reused: those equal to an earlier one.
    """

    runs: int
    wall: float
    teacher: float
    trials: Mapping[str, float]
    epochs: int
    epochs_saved: int
    rejected: int
    reused: int

    def __str__(self) -> str:
        hours = ", ".join(
            f"{duration(seconds)} of trials on {device}" for device, seconds in self.trials.items()
        )
        parts = [
            f"{duration(self.wall)} of wall time in {counted(self.runs, 'run')}",
            hours,
            f"{duration(self.teacher)} for the teacher",
            f"{counted(self.epochs, 'epoch')} trained",
            f"{self.epochs_saved:,} saved by pruning" if self.epochs_saved else "",
            f"{counted(self.rejected, 'candidate')} rejected before training",
            f"{self.reused:,} equal to an earlier one" if self.reused else "",
        ]
        return f"Spent: {', '.join(filter(None, parts))}".replace(SPACE, " ")


def spent(study: OpenStudy) -> Spend:
    """Return what the study took until now, without a run that has not ended."""
    runs, records = study.facts.runs, study.records()
    trained = [record for record in records if record.reused_from is None]
    pruned = [record for record in trained if record.state == "pruned"]
    devices = list(dict.fromkeys(run.device for run in runs)) or ["cpu"]
    return Spend(
        runs=len(runs),
        wall=sum(run.seconds for run in runs),
        teacher=study.facts.teacher_seconds,
        trials={" and ".join(devices): sum(record.seconds for record in records)},
        epochs=sum(len(record.curve) for record in trained),
        epochs_saved=sum(planned_epochs(record.params) - len(record.curve) for record in pruned),
        rejected=sum(record.state == "rejected" for record in trained),
        reused=sum(record.reused_from is not None for record in records),
    )
