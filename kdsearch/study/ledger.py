"""The account of a run: what it is at, in progress.json, and what it took, in the study's facts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING

from kdsearch.errors import BudgetError, TrialsFailedError
from kdsearch.space import Params
from kdsearch.spec import Budget, TrialRecord
from kdsearch.study.callbacks import Callback
from kdsearch.study.facts import Run
from kdsearch.study.lease import Holder
from kdsearch.study.progress import PROGRESS, Progress, Running, read_progress, write_progress
from kdsearch.study.spend import (
    ENDED,
    FAILED,
    INTERRUPTED,
    KILLED,
    planned_epochs,
)
from kdsearch.study.study import OpenStudy, Proposal

if TYPE_CHECKING:
    from kdsearch.training.trainer import Epoch

_EVERY = 1.0  # second between two writes of the file


class Ledger(Callback):
    """Keeps the account of one run; a context, which closes it. A killed run's is taken over.

    started: by `time.perf_counter`. What a killed run took is known to the last epoch it told.
    """

    def __init__(self, study: OpenStudy, *, device: str, started: float) -> None:
        self._study = study
        self._started = started
        self._written = 0.0
        self._lock = Lock()
        self._is_open = True
        self._running: dict[int, Running] = {}
        self._take_over(study.path)
        self._progress = Progress(
            holder=Holder.here(),
            began=datetime.now(UTC).isoformat(timespec="seconds"),
            device=device,
            updated=time.time(),
            seconds=0.0,
        )
        self._write()

    def __enter__(self) -> Ledger:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the account, if nobody has, with how the run ended."""
        if error is None or isinstance(error, BudgetError | TrialsFailedError):
            self.end(ENDED)
        else:
            self.end(INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED)

    def end(self, how: str) -> None:
        """Add the run to the study's facts, once."""
        with self._lock:
            if self._is_open:
                self._is_open = False
                self._add(replace(self._now(), running=()), how)
                (self._study.path / PROGRESS).unlink(missing_ok=True)

    def on_search_begin(
        self, done: Sequence[TrialRecord], n_trials: int, *, budget: Budget
    ) -> None:
        """Say that the run is under way."""
        with self._lock:
            self._write()

    def on_trial_begin(self, proposal: Proposal) -> None:
        """Add a running trial."""
        began = Running(
            number=proposal.number,
            what=name_trial(proposal.params),
            epochs=planned_epochs(proposal.params),
            began=time.time(),
            kind=proposal.kind,
        )
        with self._lock:
            self._running[proposal.number] = began
            beside = max(self._progress.beside, len(self._running))
            self._progress = replace(self._progress, beside=beside)
            self._write_in_time()

    def on_epoch(self, number: int, epoch: Epoch, epochs: int) -> None:
        """Note how far a trial is."""
        with self._lock:
            if number in self._running:
                told = self._running[number]
                told = replace(told, epoch=epoch.number, epochs=epochs, val=epoch.val)
                self._running[number] = told
            self._write_in_time()

    def on_trial_end(self, record: TrialRecord, best: TrialRecord | None) -> None:
        """Strike out a trial that ended."""
        with self._lock:
            self._running.pop(record.number, None)
            self._write_in_time()

    def _now(self) -> Progress:
        return replace(
            self._progress,
            updated=time.time(),
            seconds=time.perf_counter() - self._started,
            running=tuple(self._running.values()),
        )

    def _write_in_time(self) -> None:
        if time.perf_counter() - self._written >= _EVERY:
            self._write()

    def _write(self) -> None:
        if self._is_open:
            self._progress = self._now()
            self._written = time.perf_counter()
            write_progress(self._study.path, self._progress)

    def _take_over(self, path: Path) -> None:
        left = read_progress(path)
        if left is not None:
            self._add(left, KILLED)

    def _add(self, progress: Progress, how: str) -> None:
        run = Run(began=progress.began, seconds=progress.seconds, device=progress.device, end=how)
        self._study.update_facts(runs=(*self._study.facts.runs, run))


def name_trial(params: Params) -> str:
    """Return the student's family and the method, as 'resnet + kd', of a refit '(seed 1)' too."""
    repeat = params.get("train.repeat")
    seed = f" (seed {repeat})" if repeat else ""
    return f"{params.get('student.family', '-')} + {params.get('method.name', 'kd')}{seed}"
