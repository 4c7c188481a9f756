"""What is handed out next and how it ended: the same for every engine. No torch here.

An engine takes trials from here, runs them wherever it likes, and brings back their outcomes. One
thread, the driver's, calls this; it alone asks and tells the study. An equal earlier trial stands
for a new one, and one that is equal to a running trial waits until that has ended. Three trials in
a row that fail alike end the study: the next hundred would too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeAlias

from kdsearch.errors import TrialsFailedError
from kdsearch.spec import TrialRecord
from kdsearch.study.config import OBJECTIVE
from kdsearch.study.study import OpenStudy, Price, Proposal, TrialOutcome, searched

OnTrial: TypeAlias = Callable[[TrialRecord], None]
MAX_FAILURES = 3  # in a row and alike
_TRAINED = ("complete", "pruned")
_NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")


class Proposals:
    """Hands out the trials of `source`, and tells the study how each of them ended.

    earlier: returns the trial whose outcome stands for one; by default any equal one.
    """

    def __init__(
        self,
        study: OpenStudy,
        source: Iterator[Proposal],
        *,
        on_begin: Callable[[Proposal], None] | None = None,
        on_trial: OnTrial | None = None,
        earlier: Callable[[Proposal], TrialRecord | None] | None = None,
    ) -> None:
        self._study = study
        self._source = source
        self._on_begin = on_begin
        self._on_trial = on_trial
        self._earlier = earlier or study.earlier
        self._running: set[str] = set()
        self._waiting: Proposal | None = None
        self._failures: list[str] = []

    def next(self) -> Proposal | None:
        """Return a trial to run; None when nothing is left, or only what waits for a running one.

        Trials that need not run are told on the way.
        """
        while (proposal := self._waiting or next(self._source, None)) is not None:
            self._waiting = proposal if proposal.digest in self._running else None
            if self._waiting is not None:
                return None
            if (earlier := self._earlier(proposal)) is None:
                self._running.add(proposal.digest)
                if self._on_begin is not None:
                    self._on_begin(proposal)
                return proposal
            self._tell(proposal, _reused(earlier))
        return None

    @property
    def is_waiting(self) -> bool:
        """Whether a trial is left that waits for an equal running one."""
        return self._waiting is not None

    def end(self, proposal: Proposal, outcome: TrialOutcome) -> None:
        """Take how a trial ended that `next` gave.

        Raises TrialsFailedError when it is the third in a row to fail of one cause: a trial that
        could be trained between them breaks the row, one over the budget or that was reused does
        not. Controls and refits do not count: the search is over.
        """
        self._running.remove(proposal.digest)
        record = self._tell(proposal, outcome)
        if record.state in _TRAINED:
            self._failures.clear()
        elif record.state == "failed" and not proposal.kind:
            self._fail(record.reason)

    def _fail(self, reason: str) -> None:
        cause = _NUMBER.sub("#", reason)
        if cause not in self._failures:
            self._failures.clear()
        self._failures.append(cause)
        if len(self._failures) == MAX_FAILURES:
            config, path = self._study.config, self._study.path
            log = "the log" if config.data == OBJECTIVE else path / "kdsearch.log"
            raise TrialsFailedError(
                f"stopped: {MAX_FAILURES} trials in a row failed of one cause:\n  {reason}\n"
                f"Details: {log}. Once that is mended, {config.how_to_resume(path)}"
            )

    def _tell(self, proposal: Proposal, outcome: TrialOutcome) -> TrialRecord:
        record = self._study.tell(proposal, outcome)
        if self._on_trial is not None:
            self._on_trial(record)
        return record


Engine: TypeAlias = Callable[[Proposals], None]


def search(
    study: OpenStudy,
    *,
    n_trials: int,
    is_enough: Callable[[], bool] = lambda: False,
    price: Price | None = None,
) -> Iterator[Proposal]:
    """Yield new trials until the study holds `n_trials` of the search, or those are enough.

    That is looked at between trials: a running one is finished. price: see `OpenStudy.ask`.
    """
    for _ in range(n_trials - len(searched(study.records()))):
        if is_enough():
            return
        yield study.ask(price)


def _reused(earlier: TrialRecord) -> TrialOutcome:
    """Return the outcome of an equal earlier trial, which stands for this one too."""
    return TrialOutcome(
        state=earlier.state,
        cost=earlier.cost,
        violations=earlier.violations,
        val=earlier.val,
        curve=earlier.curve,
        epochs=earlier.epochs,
        reason=f"equal to trial {earlier.number}",
        reused_from=earlier.number,
    )
