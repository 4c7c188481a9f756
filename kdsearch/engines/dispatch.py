"""Ask/tell queue between the study and an engine. No torch here.

An engine takes trials, runs them wherever it likes, and returns their outcomes. The driver's thread
alone calls this. An equal earlier trial stands for a new one; a proposal that equals a running
trial is parked until that one ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TypeAlias

from kdsearch.errors import TrialsFailedError
from kdsearch.spec import TrialRecord
from kdsearch.study.config import OBJECTIVE
from kdsearch.study.study import OpenStudy, searched
from kdsearch.study.trial_notes import Proposal, TrialOutcome
from kdsearch.study.width import Latencies, Price

OnTrial: TypeAlias = Callable[[TrialRecord], None]
MAX_FAILURES = 3  # in a row and alike; the next hundred trials would fail too
MAX_PARKED = 8  # proposals; each was sampled without the outcomes of the trials that run
_TRAINED = ("complete", "pruned")
_NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")


class TrialQueue:
    """Gives an engine the trials of `source`, and stores their outcomes in the study.

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
        self._parked: list[Proposal] = []
        self._failures: list[str] = []

    def next(self) -> Proposal | None:
        """Return a trial to run; None when none is left, or only parked ones."""
        while (proposal := self._take()) is not None:
            if proposal.stored is not None or (earlier := self._earlier(proposal)) is None:
                self._running.add(proposal.digest)
                if self._on_begin is not None:
                    self._on_begin(proposal)
                return proposal
            self._store(proposal, _reused(earlier))
        return None

    def _take(self) -> Proposal | None:
        """Return a proposal that equals no running trial, and park those that do."""
        for i, proposal in enumerate(self._parked):
            if proposal.digest not in self._running:
                return self._parked.pop(i)
        while len(self._parked) < MAX_PARKED:
            new = next(self._source, None)
            if new is None or new.digest not in self._running:
                return new
            self._parked.append(new)
        return None

    def end(self, proposal: Proposal, outcome: TrialOutcome) -> TrialRecord:
        """Store the outcome of a trial that `next` returned.

        Raises TrialsFailedError when it is the third in a row to fail of one cause. A trained trial
        breaks the row, a rejected or reused one does not. Controls and refits do not count.
        """
        self._running.remove(proposal.digest)
        record = self._store(proposal, outcome)
        if record.state in _TRAINED:
            self._failures.clear()
        elif record.state == "failed" and not proposal.kind:
            self._count_failure(record.reason)
        return record

    def _count_failure(self, reason: str) -> None:
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

    def _store(self, proposal: Proposal, outcome: TrialOutcome) -> TrialRecord:
        record = self._study.tell(proposal, outcome)
        if self._on_trial is not None:
            self._on_trial(record)
        return record


Engine: TypeAlias = Callable[[TrialQueue], None]


def search(
    study: OpenStudy,
    *,
    n_trials: int,
    is_enough: Callable[[], bool] = lambda: False,
    price: Price | None = None,
    latencies: Latencies | None = None,
) -> Iterator[Proposal]:
    """Yield new trials until the study holds `n_trials` of the search, or `is_enough`.

    `is_enough` is called between trials: a running one is finished. price, latencies: see
    `OpenStudy.ask`.
    """
    for _ in range(n_trials - len(searched(study.records()))):
        if is_enough():
            return
        yield study.ask(price, latencies)


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
        taught_epochs=earlier.taught_epochs,
    )
