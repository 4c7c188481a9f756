"""Run trials in this process, one at a time or several in threads.

The engine works with any objective: it needs no torch and starts no process.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import TypeAlias

from kdsearch.engines.dispatch import TrialQueue
from kdsearch.study.trial_notes import Proposal, TrialOutcome

Evaluate: TypeAlias = Callable[[Proposal], TrialOutcome]
_Ended: TypeAlias = "SimpleQueue[tuple[Proposal, Evaluate, TrialOutcome | BaseException]]"


def run(queue: TrialQueue, evaluators: Sequence[Evaluate]) -> None:
    """Run every trial of the queue.

    evaluators: one for each trial that may run at a time. A single one runs in this thread, each of
    several in a thread of its own; outcomes are stored in the order in which trials end. An error
    that an evaluator raises ends the run and abandons the other trials, as an interrupt does.
    """
    if len(evaluators) > 1:
        _run_in_threads(queue, evaluators)
        return
    while (proposal := queue.next()) is not None:
        queue.end(proposal, evaluators[0](proposal))


def _run_in_threads(queue: TrialQueue, evaluators: Sequence[Evaluate]) -> None:
    free = list(evaluators)
    ended: _Ended = SimpleQueue()
    while True:
        while free and (proposal := queue.next()) is not None:
            # A daemon: an interrupted run does not wait for it.
            Thread(target=_evaluate, args=(proposal, free.pop(0), ended), daemon=True).start()
        if len(free) == len(evaluators):
            return
        proposal, evaluate, outcome = ended.get()
        if isinstance(outcome, BaseException):
            raise outcome
        free.append(evaluate)
        queue.end(proposal, outcome)


def _evaluate(proposal: Proposal, evaluate: Evaluate, ended: _Ended) -> None:
    """Put the outcome into `ended`, or the error, which the driver raises again."""
    outcome: TrialOutcome | BaseException
    try:
        outcome = evaluate(proposal)
    except BaseException as error:
        outcome = error
    ended.put((proposal, evaluate, outcome))
