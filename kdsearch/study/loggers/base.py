"""Who is told how a study gets on: each is one file, and one that fails ends no study."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from threading import RLock
from typing import TYPE_CHECKING

from kdsearch.errors import StopStudy
from kdsearch.spec import Budget, TrialRecord
from kdsearch.study.study import OpenStudy, Proposal

if TYPE_CHECKING:
    from kdsearch.training.trainer import Epoch

logger = logging.getLogger(__name__)


class Callback:
    """Who is told how a study gets on; what a class leaves out, it leaves untold.

    typed: what the user typed for it, empty where nobody did.
    """

    typed: str = ""

    def note(self, text: str) -> None:
        """Tell one line."""

    def teacher_epoch(self, epoch: Epoch, epochs: int) -> None:
        """Tell that the teacher's training has got so far."""

    def search(self, done: Sequence[TrialRecord], n_trials: int, *, budget: Budget) -> None:
        """Tell that the search begins, and the trials of it that have ended already."""

    def begun(self, proposal: Proposal) -> None:
        """Tell that a trial begins; several threads may tell at a time, here and below."""

    def trial_epoch(self, number: int, epoch: Epoch, epochs: int) -> None:
        """Tell that a trial's training has got so far."""

    def trial(self, record: TrialRecord, best: TrialRecord | None) -> None:
        """Tell how a trial ended, and the most accurate one so far."""


class Logger(Callback):
    """A watcher of one study that keeps what it is told: a file, a service, a function."""

    def __init__(self, study: OpenStudy) -> None:
        """Begin with an open study, which is to be read only."""

    def close(self) -> None:
        """Write what is not written yet."""


class Callbacks(Callback):
    """Tells several, one after another, and in one thread at a time.

    One that raises is told no more: its traceback goes to the log, and a note to the others.
    stopped: the reason that one gave with StopStudy, or None.
    """

    def __init__(self, watchers: Iterable[Callback]) -> None:
        self._watchers = list(watchers)
        self._lock = RLock()
        self.stopped: str | None = None

    def add(self, watcher: Callback) -> None:
        """Tell one more from now on."""
        with self._lock:
            self._watchers.append(watcher)

    def note(self, text: str) -> None:
        """Tell each."""
        self._tell(lambda watcher: watcher.note(text))

    def teacher_epoch(self, epoch: Epoch, epochs: int) -> None:
        """Tell each."""
        self._tell(lambda watcher: watcher.teacher_epoch(epoch, epochs))

    def search(self, done: Sequence[TrialRecord], n_trials: int, *, budget: Budget) -> None:
        """Tell each."""
        self._tell(lambda watcher: watcher.search(done, n_trials, budget=budget))

    def begun(self, proposal: Proposal) -> None:
        """Tell each."""
        self._tell(lambda watcher: watcher.begun(proposal))

    def trial_epoch(self, number: int, epoch: Epoch, epochs: int) -> None:
        """Tell each."""
        self._tell(lambda watcher: watcher.trial_epoch(number, epoch, epochs))

    def trial(self, record: TrialRecord, best: TrialRecord | None) -> None:
        """Tell each."""
        self._tell(lambda watcher: watcher.trial(record, best))

    def close(self) -> None:
        """Close the loggers among them."""
        self._tell(lambda watcher: watcher.close() if isinstance(watcher, Logger) else None)

    def _tell(self, tell: Callable[[Callback], None]) -> None:
        with self._lock:
            for watcher in tuple(self._watchers):
                try:
                    tell(watcher)
                except StopStudy as stop:
                    self.stopped = str(stop) or "a callback asked to stop"
                except Exception as error:
                    self._drop(watcher, error)

    def _drop(self, watcher: Callback, error: Exception) -> None:
        self._watchers.remove(watcher)
        name = watcher.typed or type(watcher).__name__
        logger.exception("%s failed and is told no more", name)
        self.note(
            f"{name} failed and is told no more, the study goes on: "
            f"{type(error).__name__}: {error} (traceback in kdsearch.log)"
        )
