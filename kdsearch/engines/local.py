"""Run a study's trials on this machine, one at a time or several side by side.

The study proposes, an evaluator executes, the engine only carries between them: it works on any
objective, needs no torch and knows of no processes. The calling thread alone asks and tells.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import TypeAlias

from kdsearch.spec import TrialRecord
from kdsearch.study import Asked, Outcome, Study, searched

Evaluate: TypeAlias = Callable[[Asked], Outcome]
OnTrial: TypeAlias = Callable[[TrialRecord], None]
_Ended: TypeAlias = "SimpleQueue[tuple[Asked, Evaluate, Outcome | BaseException]]"


def run(
    study: Study,
    evaluators: Sequence[Evaluate],
    *,
    n_trials: int,
    time_limit: float | None = None,
    on_trial: OnTrial | None = None,
) -> None:
    """Go on until the study holds `n_trials` trials of the search, or `time_limit` seconds are up.

    evaluators: one for each trial that may run at a time. A single one is called in this thread;
    each of several in a thread of its own, and trials are told in the order in which they end. The
    limit is looked at between trials: a running one is finished. What an evaluator raises ends the
    run, and the trials beside it are abandoned, as they are when the run is interrupted.
    """
    until = math.inf if time_limit is None else time.perf_counter() + time_limit
    asked = _ask(study, n_trials - len(searched(study.records())), until)
    ended: Iterator[TrialRecord]
    if len(evaluators) == 1:
        ended = (run_one(study, trial, evaluators[0]) for trial in asked)
    else:
        ended = _run_beside(study, asked, evaluators)
    for record in ended:
        if on_trial is not None:
            on_trial(record)


def _ask(study: Study, n_trials: int, until: float) -> Iterator[Asked]:
    for _ in range(n_trials):
        if time.perf_counter() >= until:
            return
        yield study.ask()


def run_one(study: Study, asked: Asked, evaluate: Evaluate) -> TrialRecord:
    """Run one trial and tell the study; an equal earlier one is not trained again."""
    return study.tell(asked, _known(study, asked) or evaluate(asked))


def _known(study: Study, asked: Asked) -> Outcome | None:
    """Return the outcome of an equal earlier trial, which stands for this one too."""
    earlier = study.earlier(asked)
    if earlier is None:
        return None
    return Outcome(
        state=earlier.state,
        cost=earlier.cost,
        violations=earlier.violations,
        val=earlier.val,
        curve=earlier.curve,
        reason=f"equal to trial {earlier.number}",
        reused_from=earlier.number,
    )


def _run_beside(
    study: Study, asked: Iterator[Asked], evaluators: Sequence[Evaluate]
) -> Iterator[TrialRecord]:
    """Yield trials as they end. One that is equal to a running trial waits until that has ended."""
    free = list(evaluators)
    running: set[str] = set()
    waiting: Asked | None = None
    ended: _Ended = SimpleQueue()
    while True:
        while free and (trial := waiting or next(asked, None)) is not None:
            waiting = trial if trial.digest in running else None
            if waiting is not None:
                break
            if (known := _known(study, trial)) is not None:
                yield study.tell(trial, known)
                continue
            running.add(trial.digest)
            # A daemon: an interrupted run does not wait for it.
            Thread(target=_evaluate, args=(trial, free.pop(0), ended), daemon=True).start()
        if not running:
            return
        trial, evaluate, outcome = ended.get()
        if isinstance(outcome, BaseException):
            raise outcome
        running.remove(trial.digest)
        free.append(evaluate)
        yield study.tell(trial, outcome)


def _evaluate(trial: Asked, evaluate: Evaluate, ended: _Ended) -> None:
    """Put into the queue how a trial ended; what is raised is raised again by the driver."""
    outcome: Outcome | BaseException
    try:
        outcome = evaluate(trial)
    except BaseException as error:
        outcome = error
    ended.put((trial, evaluate, outcome))
