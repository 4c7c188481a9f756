"""Study callbacks: a callback that raises is logged and dropped, and the study continues."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from threading import RLock
from typing import TYPE_CHECKING

from kdsearch.errors import StopStudy, explained
from kdsearch.spec import TrialRecord
from kdsearch.study.loss_scales import unequal_terms
from kdsearch.study.run_state import RunState
from kdsearch.study.trial_notes import Proposal

if TYPE_CHECKING:
    from kdsearch.tasks import Metric
    from kdsearch.training.trainer import Epoch

logger = logging.getLogger(__name__)


class Callback:
    """Override only the events you need. Any of them may raise StopStudy, which ends the search.

    typed: the command-line option that added it, empty without one.

    Example: kdsearch.run(trials=3, callback=Callback())
    """

    typed: str = ""

    def on_message(self, text: str) -> None:
        """Receive one line for the user."""

    def on_prepare(self, metric: Metric) -> None:
        """Receive the metric of the task, before the teacher is loaded or trained."""

    def on_teacher_epoch(self, epoch: Epoch, epochs: int) -> None:
        """Receive an epoch of the teacher's training."""

    def on_search_begin(self, state: RunState) -> None:
        """Receive the state of the search, which is up to date at each later event."""

    def on_trial_begin(self, proposal: Proposal) -> None:
        """Receive a trial that begins. Several threads may call this and the next two at a time."""

    def on_epoch(self, number: int, epoch: Epoch, epochs: int) -> None:
        """Receive an epoch of a trial."""

    def on_trial_end(self, record: TrialRecord, best: TrialRecord | None) -> None:
        """Receive a finished trial, and the best one so far."""

    def close(self) -> None:
        """Write what is not written yet; the study is over."""


class Callbacks(Callback):
    """Updates the RunState, then calls several callbacks in turn, in one thread at a time.

    A loss whose scale is far off the task's is a message, once for each method. One that raises is
    dropped: its traceback goes to the log, a message to the others.
    stopped: the reason that a callback gave with StopStudy, or None.
    """

    def __init__(self, callbacks: Iterable[Callback]) -> None:
        self._callbacks = list(callbacks)
        self._lock = RLock()
        self._state = RunState()
        self._warned: set[str] = set()
        self.stopped: str | None = None

    def on_message(self, text: str) -> None:
        """Call each."""
        self._each(lambda callback: callback.on_message(text))

    def on_prepare(self, metric: Metric) -> None:
        """Call each."""
        self._each(lambda callback: callback.on_prepare(metric))

    def on_teacher_epoch(self, epoch: Epoch, epochs: int) -> None:
        """Call each."""
        self._each(lambda callback: callback.on_teacher_epoch(epoch, epochs))

    def on_search_begin(self, state: RunState) -> None:
        """Call each."""
        with self._lock:
            self._state = state
            self._each(lambda callback: callback.on_search_begin(state))

    def on_trial_begin(self, proposal: Proposal) -> None:
        """Call each."""
        with self._lock:
            self._state.begin(proposal)
            self._each(lambda callback: callback.on_trial_begin(proposal))

    def on_epoch(self, number: int, epoch: Epoch, epochs: int) -> None:
        """Call each."""
        with self._lock:
            self._state.epoch(number, epoch, epochs)
            self._each(lambda callback: callback.on_epoch(number, epoch, epochs))
            for name, warning in unequal_terms(epoch.scales).items():
                if name not in self._warned:
                    self._warned.add(name)
                    self.on_message(warning)

    def on_trial_end(self, record: TrialRecord, best: TrialRecord | None) -> None:
        """Call each."""
        with self._lock:
            self._state.end(record, best)
            self._each(lambda callback: callback.on_trial_end(record, best))

    def close(self) -> None:
        """Call each."""
        self._each(lambda callback: callback.close())

    def _each(self, call: Callable[[Callback], None]) -> None:
        with self._lock:
            for callback in tuple(self._callbacks):
                try:
                    call(callback)
                except StopStudy as stop:
                    self.stopped = str(stop) or "a callback stopped the study"
                except Exception as error:
                    self._drop(callback, error)

    def _drop(self, callback: Callback, error: Exception) -> None:
        self._callbacks.remove(callback)
        name = callback.typed or type(callback).__name__
        logger.exception("%s failed and is dropped", name)
        self.on_message(
            f"{name} failed and is dropped, the study continues: {explained(error)} "
            "(traceback in kdsearch.log)"
        )
