"""Run trials on this machine, one at a time or several side by side.

The engine only carries between the proposals and the evaluators: it works on any objective, needs
no torch and knows of no processes. The calling thread alone asks and tells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import SimpleQueue
from threading import Thread
from typing import TypeAlias

from kdsearch.engines.dispatch import Proposals
from kdsearch.study.study import Proposal, TrialOutcome

Evaluate: TypeAlias = Callable[[Proposal], TrialOutcome]
_Ended: TypeAlias = "SimpleQueue[tuple[Proposal, Evaluate, TrialOutcome | BaseException]]"


def run(proposals: Proposals, evaluators: Sequence[Evaluate]) -> None:
    """Run every trial that is proposed.

    evaluators: one for each trial that may run at a time. A single one is called in this thread;
    each of several in a thread of its own, and trials are told in the order in which they end. What
    an evaluator raises ends the run, and the trials beside it are abandoned, as they are when the
    run is interrupted.
    """
    if len(evaluators) > 1:
        _run_beside(proposals, evaluators)
        return
    while (proposal := proposals.next()) is not None:
        proposals.end(proposal, evaluators[0](proposal))


def _run_beside(proposals: Proposals, evaluators: Sequence[Evaluate]) -> None:
    free = list(evaluators)
    ended: _Ended = SimpleQueue()
    while True:
        while free and (proposal := proposals.next()) is not None:
            # A daemon: an interrupted run does not wait for it.
            Thread(target=_evaluate, args=(proposal, free.pop(0), ended), daemon=True).start()
        if len(free) == len(evaluators):
            return
        proposal, evaluate, outcome = ended.get()
        if isinstance(outcome, BaseException):
            raise outcome
        free.append(evaluate)
        proposals.end(proposal, outcome)


def _evaluate(proposal: Proposal, evaluate: Evaluate, ended: _Ended) -> None:
    """Put into the queue how a trial ended; what is raised is raised again by the driver."""
    outcome: TrialOutcome | BaseException
    try:
        outcome = evaluate(proposal)
    except BaseException as error:
        outcome = error
    ended.put((proposal, evaluate, outcome))
