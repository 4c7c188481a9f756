"""What is handed out next and how it ended: the same for every engine. No torch here.

An engine takes trials from here, runs them wherever it likes, and brings back their outcomes. One
thread, the driver's, calls this; it alone asks and tells the study. An equal earlier trial stands
for a new one, and one that is equal to a running trial waits until that has ended.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

from kdsearch.spec import TrialRecord
from kdsearch.study import Asked, Outcome, Price, Study, searched

OnTrial: TypeAlias = Callable[[TrialRecord], None]


class Proposals:
    """Hands out the trials of `source`, and tells the study how each of them ended.

    earlier: returns the trial whose outcome stands for one; by default any equal one.
    """

    def __init__(
        self,
        study: Study,
        source: Iterator[Asked],
        *,
        on_trial: OnTrial | None = None,
        earlier: Callable[[Asked], TrialRecord | None] | None = None,
    ) -> None:
        self._study = study
        self._source = source
        self._on_trial = on_trial
        self._earlier = earlier or study.earlier
        self._running: set[str] = set()
        self._waiting: Asked | None = None

    def next(self) -> Asked | None:
        """Return a trial to run; None when nothing is left, or only what waits for a running one.

        Trials that need not run are told on the way.
        """
        while (asked := self._waiting or next(self._source, None)) is not None:
            self._waiting = asked if asked.digest in self._running else None
            if self._waiting is not None:
                return None
            if (earlier := self._earlier(asked)) is None:
                self._running.add(asked.digest)
                return asked
            self._tell(asked, _reused(earlier))
        return None

    @property
    def is_waiting(self) -> bool:
        """Whether a trial is left that waits for an equal running one."""
        return self._waiting is not None

    def end(self, asked: Asked, outcome: Outcome) -> None:
        """Take how a trial ended that `next` gave."""
        self._running.remove(asked.digest)
        self._tell(asked, outcome)

    def _tell(self, asked: Asked, outcome: Outcome) -> None:
        record = self._study.tell(asked, outcome)
        if self._on_trial is not None:
            self._on_trial(record)


Engine: TypeAlias = Callable[[Proposals], None]


def search(
    study: Study,
    *,
    n_trials: int,
    time_limit: float | None = None,
    price: Price | None = None,
) -> Iterator[Asked]:
    """Yield new trials until the study holds `n_trials` of the search, or the seconds are up.

    The limit is looked at between trials: a running one is finished. price: see `Study.ask`.
    """
    until = math.inf if time_limit is None else time.perf_counter() + time_limit
    for _ in range(n_trials - len(searched(study.records()))):
        if time.perf_counter() >= until:
            return
        yield study.ask(price)


def _reused(earlier: TrialRecord) -> Outcome:
    """Return the outcome of an equal earlier trial, which stands for this one too."""
    return Outcome(
        state=earlier.state,
        cost=earlier.cost,
        violations=earlier.violations,
        val=earlier.val,
        curve=earlier.curve,
        reason=f"equal to trial {earlier.number}",
        reused_from=earlier.number,
    )
