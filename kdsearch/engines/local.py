"""Run a study's trials one after another in this process.

The study proposes, `evaluate` executes, the engine only carries between them: it works on any
objective and needs no torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from kdsearch.spec import TrialRecord
from kdsearch.study import Asked, Outcome, Study, searched

Evaluate = Callable[[Asked], Outcome]
OnTrial = Callable[[TrialRecord], None]


def run(
    study: Study,
    evaluate: Evaluate,
    *,
    n_trials: int,
    time_limit: float | None = None,
    on_trial: OnTrial | None = None,
) -> None:
    """Go on until the study holds `n_trials` trials of the search, or `time_limit` seconds are up.

    The limit is looked at between trials: a running one is finished.
    """
    started = time.perf_counter()
    done = len(searched(study.records()))
    while done < n_trials:
        if time_limit is not None and time.perf_counter() - started >= time_limit:
            return
        record = run_one(study, study.ask(), evaluate)
        done += 1
        if on_trial is not None:
            on_trial(record)


def run_one(study: Study, asked: Asked, evaluate: Evaluate) -> TrialRecord:
    """Run one trial and tell the study; an equal earlier one is not trained again."""
    if asked.reuse is None:
        return study.tell(asked, evaluate(asked))
    earlier = asked.reuse
    outcome = Outcome(
        state="complete",
        cost=earlier.cost,
        violations=earlier.violations,
        val=earlier.val,
        curve=earlier.curve,
        reason=f"equal to trial {earlier.number}",
    )
    return study.tell(asked, outcome)
