"""Run trials on Ray Tune, in processes of this machine or of a cluster. No torch here.

Tune places the trials; the study decides what runs. Tune's loop, with our searcher and scheduler,
runs in the calling thread, which alone calls the study. An actor evaluates in a thread of its own,
one trial after another, so that Tune's calls are short: each returns the messages since the last.
"""

from __future__ import annotations

import gc
import logging
import math
import os
import pickle
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, TypeAlias

from ray import tune
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from kdsearch.engines.dispatch import OnTrial, TrialQueue
from kdsearch.engines.logs import send_logs, write_log
from kdsearch.engines.ray_cluster import node_error, quiet
from kdsearch.errors import StudyError
from kdsearch.study.trial_notes import Proposal, TrialOutcome

_log = logging.getLogger(__name__)

RETRIES = 2  # of a trial whose actor died
_CHECK_SECONDS = 2.0  # between looks at the Ray node of this process
_GATHER_SECONDS = 0.5  # for which an actor collects messages, as each call costs some ms

Report: TypeAlias = Callable[..., None]  # sends its arguments to `on_progress`, and returns at once
Evaluate: TypeAlias = Callable[[Proposal, Report], TrialOutcome]
Start: TypeAlias = Callable[[], Evaluate]
OnProgress: TypeAlias = Callable[..., None]


def run(
    queue: TrialQueue,
    start: Start,
    *,
    workers: int,
    gpus: float = 0.0,
    timeout: float | None = None,
    on_end: OnTrial | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Run every trial of the queue, on the Ray that this process is connected to.

    start: sent to each actor and called there once; returns what evaluates a trial. workers, gpus:
    how many trials run at a time, and each one's share of a GPU. timeout: seconds after which a
    trial fails. on_end: called with each trial that was evaluated, before the next one begins. A
    trial whose actor dies runs again, RETRIES times, and then fails alone. An error of `start`, an
    evaluator or a callback ends the run. After a KeyboardInterrupt actors may run until the
    connection ends.
    """
    gc.collect()  # ends the actors of an interrupted run, which reference cycles keep alive
    search = _Search(queue, on_end=on_end, on_progress=on_progress)
    actor = tune.with_parameters(_Actor, start=start, timeout=timeout)
    with TemporaryDirectory(prefix="kdsearch-") as scratch, quiet():
        tuner = tune.Tuner(
            tune.with_resources(actor, {"cpu": 1, "gpu": gpus}),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=_Schedule(search),
                num_samples=-1,
                max_concurrent_trials=workers,
                reuse_actors=True,
                trial_dirname_creator=_name,
                trial_name_creator=_name,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                verbose=0,
                stop=_StopOnError(search),
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        try:
            tuner.fit()
        except Exception:
            if search.error is None:
                raise
        if search.error is not None:
            raise search.error
        if search.running:  # somebody sent SIGUSR1, which ends Tune's loop
            raise KeyboardInterrupt


def _name(trial: Trial) -> str:
    return f"trial-{trial.config['proposal'].number}-{trial.trial_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Progress:
    args: tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Raised:
    error: BaseException


_Message: TypeAlias = _Progress | logging.LogRecord | TrialOutcome | _Raised


class _Actor(tune.Trainable):
    """Evaluates one trial after another in a thread of its own; `step` returns its messages."""

    def setup(  # type: ignore[override]  # `with_parameters` adds it
        self, config: dict[str, Any], *, start: Start, timeout: float | None
    ) -> None:
        self._proposals: SimpleQueue[Proposal] = SimpleQueue()
        self._messages: SimpleQueue[_Message] = SimpleQueue()
        self._next: Proposal | None = config["proposal"]
        self._timeout = timeout
        self._began = math.inf  # the trial in the other thread
        self._is_hung = False
        Thread(target=self._work, args=(start,), daemon=True).start()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        if self._is_hung:  # a thread cannot be ended; the trial begins in another actor
            os._exit(1)
        self._next = new_config["proposal"]
        return True

    def step(self) -> dict[str, Any]:
        """Return the messages of the next half a second, or up to the end of the trial.

        A trial begins here: until then Tune may give it to another actor.
        """
        if self._next is not None:
            self._proposals.put(self._next)
            self._next = None
        messages: list[_Message] = []
        until = time.monotonic() + _GATHER_SECONDS
        is_last = False
        while not is_last and (left := until - time.monotonic()) > 0:
            try:
                messages.append(self._messages.get(timeout=left))
            except Empty:
                break
            is_last = isinstance(messages[-1], TrialOutcome | _Raised)
        took = time.monotonic() - self._began
        if not is_last and self._timeout is not None and took > self._timeout:
            self._is_hung = True
            reason = f"no end after {self._timeout:g} s (--trial-timeout)"
            messages.append(TrialOutcome(state="failed", reason=reason, seconds=took))
        is_done = bool(messages) and isinstance(messages[-1], TrialOutcome)
        return {"messages": messages, "done": is_done}

    def _work(self, start: Start) -> None:
        send_logs(self._messages.put)
        try:
            evaluate = start()
            while True:
                proposal = self._proposals.get()
                self._began = time.monotonic()
                outcome = evaluate(proposal, self._report)
                self._began = math.inf
                self._messages.put(outcome)
        except BaseException as error:  # no caller waits for this thread
            self._messages.put(_Raised(error=_sendable(error)))

    def _report(self, *args: object) -> None:
        self._messages.put(_Progress(args=args))


def _sendable(error: BaseException) -> BaseException:
    """Return the error, or its text where it cannot be pickled and read again."""
    try:
        read: BaseException = pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return read


class _Search(Searcher):
    """Gives Tune the trials of the queue, and stores their outcomes.

    error: what ends the run. Tune swallows some errors, so `_StopOnError` raises it.
    """

    def __init__(
        self, queue: TrialQueue, *, on_end: OnTrial | None, on_progress: OnProgress | None
    ) -> None:
        super().__init__()
        self.error: BaseException | None = None
        self.running: dict[str, Proposal] = {}
        self._queue = queue
        self._on_end = on_end
        self._on_progress = on_progress
        self._again: list[Proposal] = []
        self._deaths: defaultdict[int, dict[str | None, str]] = defaultdict(dict)

    def suggest(  # type: ignore[override]  # Ray's own annotation forgets FINISHED
        self, trial_id: str
    ) -> dict[str, Any] | str | None:
        """Return the next trial; None while only running ones can bring more."""
        with self._kept_error():
            proposal = self._again.pop() if self._again else self._queue.next()
        if proposal is not None:
            self.running[trial_id] = proposal
            return {"proposal": proposal}
        return None if self.running else str(Searcher.FINISHED)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self._receive(self.running[trial_id], result["messages"])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Store the outcome of a trial.

        Tune 2.60 gives up a trial at once when the actor it waited for was dead already: it takes
        the actor's death and the failed call for two failures. Such a trial is suggested again.
        """
        proposal = self.running.pop(trial_id)
        if not error:
            assert result is not None
            self._receive(proposal, result["messages"][:-1])
            outcome = result["messages"][-1]
        elif len(deaths := list(self._deaths[proposal.number].values())) <= RETRIES:
            self._again.append(proposal)
            return
        else:
            reason = f"its Ray actor died {len(deaths)} times: {deaths[-1]}"
            outcome = TrialOutcome(state="failed", reason=reason)
        with self._kept_error():
            record = self._queue.end(proposal, outcome)
            if self._on_end is not None:
                self._on_end(record)

    def on_actor_error(self, trial_id: str, error: Exception) -> None:
        """Count the death of an actor; one that cannot start at all ends the run."""
        proposal = self.running[trial_id]
        if not isinstance(error, RayActorError):
            self.error = error
        elif error.actor_init_failed:
            cause = str(error).splitlines()[-1]
            self.error = StudyError(
                f"a Ray actor cannot start: {cause}; is the same kdsearch on every node?"
            )
        elif error.actor_id not in self._deaths[proposal.number]:
            self._deaths[proposal.number][error.actor_id] = _cause(error)
            _log.warning("the Ray actor of trial %d died: %s", proposal.number, error)

    def _receive(self, proposal: Proposal, messages: Sequence[_Message]) -> None:
        for message in messages:
            if isinstance(message, _Raised):
                self.error = message.error
            elif isinstance(message, logging.LogRecord):
                write_log(message)
            elif isinstance(message, _Progress) and self._on_progress is not None:
                with self._kept_error():
                    self._on_progress(proposal, *message.args)

    @contextmanager
    def _kept_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self.error = error
            raise

    def __reduce__(self) -> tuple[type[Searcher], tuple[()]]:
        """Leave an empty one to the file in which a Tuner describes itself."""
        return Searcher, ()

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study stores the trials."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a run resumes from the study."""


def _cause(error: RayActorError) -> str:
    """Return Ray's sentence about the cause."""
    lines = str(error).splitlines()
    causes = [line for line in lines if line.startswith("The actor is dead because ")]
    if not causes:
        return lines[0]
    cause = causes[0].removeprefix("The actor is dead because ")
    return cause.partition(". ")[0].partition(" Worker exit type")[0].rstrip(".")


class _Schedule(FIFOScheduler):
    """Runs trials in their order, and reports the death of an actor."""

    def __init__(self, search: _Search) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._search = search

    def choose_trial_to_run(self, tune_controller: object) -> None:
        """Leave it to Tune, which then starts trials in their order.

        A trial chosen here would move to the first free actor and end the one that is being started
        for it: where trials are shorter than a start, there would only ever be one actor.
        """

    def on_trial_error(self, tune_controller: object, trial: Trial) -> None:
        error = pickle.loads(Path(trial.pickled_error_file).read_bytes())
        self._search.on_actor_error(trial.trial_id, error)


class _StopOnError(Stopper):
    """Ends Tune's loop with the error that ends the run; Tune calls it ten times a second.

    Where the Ray node of this process has ended, Tune would wait for ever.
    """

    def __init__(self, search: _Search) -> None:
        self._search = search
        self._next_check = 0.0

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self._search.error is None and time.monotonic() > self._next_check:
            self._next_check = time.monotonic() + _CHECK_SECONDS
            self._search.error = node_error()
        if self._search.error is not None:
            raise self._search.error
        return False
