"""Run trials on Ray, in processes of this machine or of a cluster. No torch here.

Ray Tune places them and carries what they say; the study decides. Tune's loop, and with it our
searcher and scheduler, runs in the calling thread, which alone asks and tells. An actor evaluates
in a thread of its own, one trial after another, so that Tune's calls into it are short: each brings
back what was said meanwhile.
"""

from __future__ import annotations

import logging
import math
import os
import pickle
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, Protocol, TypeAlias

from ray import tune
from ray.exceptions import RayActorError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from kdsearch.engines.dispatch import Proposals
from kdsearch.engines.ray_cluster import quiet
from kdsearch.errors import StudyError
from kdsearch.study.early_stopping import Rung
from kdsearch.study.study import Proposal, TrialOutcome

_log = logging.getLogger(__name__)

RETRIES = 2  # how often a trial whose actor died is run again
_GATHER_SECONDS = 0.5  # for which an actor collects what is said, as each call costs some ms


class Report(Protocol):
    """What an evaluator says while it runs."""

    def progress(self, *what: object) -> None:
        """Tell the driver's `on_progress`; returns at once."""

    def rung(self, rung: Rung) -> str | None:
        """Ask the driver's `on_rung` why the trial is to stop there, or None; waits for it."""


Evaluate: TypeAlias = Callable[[Proposal, Report], TrialOutcome]
Start: TypeAlias = Callable[[], Evaluate]
OnProgress: TypeAlias = Callable[..., None]
OnRung: TypeAlias = Callable[[Proposal, Rung], "str | None"]


def run(
    proposals: Proposals,
    start: Start,
    *,
    workers: int,
    gpus: float = 0.0,
    timeout: float | None = None,
    on_rung: OnRung | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Run every trial that is proposed, on the Ray that this process is connected to.

    start: sent to each actor and called there once; returns what evaluates a trial after another.
    workers, gpus: how many trials run at a time, and the share of a GPU that each has. timeout: the
    seconds after which a trial fails. A trial whose actor dies is run again, RETRIES times, and
    then fails alone; what `start` or an evaluator raises ends the run, as does what the callbacks
    raise. After a KeyboardInterrupt actors may yet run until the connection ends.
    """
    search = _Search(proposals, on_rung=on_rung, on_progress=on_progress)
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
    return f"trial-{trial.config['asked'].number}-{trial.trial_id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Progress:
    what: tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Raised:
    error: BaseException


_Said: TypeAlias = _Progress | logging.LogRecord | Rung | TrialOutcome | _Raised


class _Actor(tune.Trainable):
    """Evaluates one trial after another in a thread of its own; Tune's calls fetch what it says."""

    def setup(  # type: ignore[override]  # `with_parameters` adds it
        self, config: dict[str, Any], *, start: Start, timeout: float | None
    ) -> None:
        self._asked: SimpleQueue[Proposal] = SimpleQueue()
        self._said: SimpleQueue[_Said] = SimpleQueue()
        self._answers: SimpleQueue[str | None] = SimpleQueue()
        self._next: Proposal | None = config["asked"]
        self._timeout = timeout
        self._began = math.inf  # the trial in the other thread
        self._is_hung = False
        Thread(target=self._work, args=(start,), daemon=True).start()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        if self._is_hung:  # a thread cannot be ended; the trial begins in another actor
            os._exit(1)
        self._next = new_config["asked"]
        return True

    def step(self) -> dict[str, Any]:
        """Return what was said in the last half a second; at once where an answer is needed.

        A trial begins here: Tune may yet give it to another actor while this one is made ready.
        """
        if self._next is not None:
            self._asked.put(self._next)
            self._next = None
        said: list[_Said] = []
        until = time.monotonic() + _GATHER_SECONDS
        is_last = False
        while not is_last and (left := until - time.monotonic()) > 0:
            try:
                said.append(self._said.get(timeout=left))
            except Empty:
                break
            is_last = isinstance(said[-1], Rung | TrialOutcome | _Raised)
        took = time.monotonic() - self._began
        if not is_last and self._timeout is not None and took > self._timeout:
            self._is_hung = True
            reason = f"no end after {self._timeout:g} s (--trial-timeout)"
            said.append(TrialOutcome(state="failed", reason=reason, seconds=took))
        return {"said": said, "done": bool(said) and isinstance(said[-1], TrialOutcome)}

    def answer(self, reason: str | None) -> None:
        """Take the driver's answer at a rung."""
        self._answers.put(reason)

    def progress(self, *what: object) -> None:
        self._said.put(_Progress(what=what))

    def rung(self, rung: Rung) -> str | None:
        self._said.put(rung)
        return self._answers.get()

    def _work(self, start: Start) -> None:
        logger = logging.getLogger("kdsearch")
        logger.setLevel(logging.INFO)
        logger.addHandler(_ToDriver(self._said))
        try:
            evaluate = start()
            while True:
                proposal = self._asked.get()
                self._began = time.monotonic()
                outcome = evaluate(proposal, self)
                self._began = math.inf
                self._said.put(outcome)
        except BaseException as error:  # nobody waits for a thread
            self._said.put(_Raised(error=_sendable(error)))


class _ToDriver(logging.Handler):
    """Sends what is logged, as text with its traceback: the driver alone writes the log."""

    def __init__(self, said: SimpleQueue[_Said]) -> None:
        super().__init__()
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        self._said.put(
            logging.LogRecord(
                record.name, record.levelno, record.pathname, record.lineno, text, None, None
            )
        )


def _sendable(error: BaseException) -> BaseException:
    """Return the error, or its text where it cannot be pickled and read again."""
    try:
        read: BaseException = pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return read


class _Search(Searcher):
    """Gives Tune what is proposed, and brings back how it ended.

    error: what ends the run; Tune would swallow some of it, so `_StopOnError` looks for it.
    """

    def __init__(
        self, proposals: Proposals, *, on_rung: OnRung | None, on_progress: OnProgress | None
    ) -> None:
        super().__init__()
        self.error: BaseException | None = None
        self.running: dict[str, Proposal] = {}
        self._proposals = proposals
        self._on_rung = on_rung
        self._on_progress = on_progress
        self._again: list[Proposal] = []
        self._deaths: defaultdict[int, dict[str | None, str]] = defaultdict(dict)

    def suggest(  # type: ignore[override]  # Ray's own annotation forgets FINISHED
        self, trial_id: str
    ) -> dict[str, Any] | str | None:
        """Return the next trial; None while only running ones can bring more."""
        with self._kept_error():
            proposal = self._again.pop() if self._again else self._proposals.next()
        if proposal is not None:
            self.running[trial_id] = proposal
            return {"asked": proposal}
        return None if self.running else str(Searcher.FINISHED)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell how a trial ended.

        Tune 2.60 gives a trial up at once when the actor that had waited for it was dead already:
        it takes the actor's death and the failed call for two failures, and the second finds the
        trial pending. Such a trial is suggested again.
        """
        proposal = self.running.pop(trial_id)
        if not error:
            assert result is not None
            outcome = result["said"][-1]
        elif len(deaths := list(self._deaths[proposal.number].values())) <= RETRIES:
            self._again.append(proposal)
            return
        else:
            reason = f"its Ray actor died {len(deaths)} times: {deaths[-1]}"
            outcome = TrialOutcome(state="failed", reason=reason)
        with self._kept_error():
            self._proposals.end(proposal, outcome)

    def lost(self, trial_id: str, error: Exception) -> None:
        """Note that the actor of a trial died; one that cannot begin at all ends the run."""
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

    def heard(self, trial_id: str, said: list[_Said]) -> Rung | None:
        """Take what the actor of a trial said; return the rung that it waits at."""
        proposal = self.running[trial_id]
        for what in said:
            if isinstance(what, _Raised):
                self.error = what.error
            elif isinstance(what, logging.LogRecord):
                logging.getLogger(what.name).handle(what)
            elif isinstance(what, _Progress) and self._on_progress is not None:
                with self._kept_error():
                    self._on_progress(proposal, *what.what)
        return said[-1] if said and isinstance(said[-1], Rung) else None

    def judged(self, trial_id: str, rung: Rung) -> str | None:
        """Return why a trial is to stop at a rung, or None."""
        if self._on_rung is None:
            return None
        with self._kept_error():
            return self._on_rung(self.running[trial_id], rung)

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
        """Do nothing: the study is what is kept."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: a run that ended goes on from the study."""


def _cause(error: RayActorError) -> str:
    """Return the sentence in which Ray says why."""
    lines = str(error).splitlines()
    told = [line for line in lines if line.startswith("The actor is dead because ")]
    if not told:
        return lines[0]
    cause = told[0].removeprefix("The actor is dead because ")
    return cause.partition(". ")[0].partition(" Worker exit type")[0].rstrip(".")


class _Schedule(FIFOScheduler):
    """Runs trials in their order, and stops them by the rule of the study.

    A trial that is to stop is told so and ends by itself, as it does on the local engine: with its
    curve written and its costs in its outcome. Tune's STOP would cut it off.
    """

    def __init__(self, search: _Search) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._search = search

    def choose_trial_to_run(self, tune_controller: object) -> None:
        """Leave it to Tune, which then starts trials in their order.

        A trial chosen here would move to the first actor that is free and end the one that is being
        started for it: where trials are shorter than that, there would only ever be one actor.
        """

    def on_trial_result(self, tune_controller: object, trial: Trial, result: dict[str, Any]) -> str:
        rung = self._search.heard(trial.trial_id, result["said"])
        if rung is not None:
            reason = self._search.judged(trial.trial_id, rung)
            actor = trial.temporary_state.ray_actor
            assert actor is not None
            actor.answer.remote(reason)
        return str(TrialScheduler.CONTINUE)

    def on_trial_complete(
        self, tune_controller: object, trial: Trial, result: dict[str, Any]
    ) -> None:
        self._search.heard(trial.trial_id, result["said"])

    def on_trial_error(self, tune_controller: object, trial: Trial) -> None:
        error = pickle.loads(Path(trial.pickled_error_file).read_bytes())
        self._search.lost(trial.trial_id, error)


class _StopOnError(Stopper):
    """Ends Tune's loop with the error that ends the run; it is asked after each event."""

    def __init__(self, search: _Search) -> None:
        self._search = search

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self._search.error is not None:
            raise self._search.error
        return False
