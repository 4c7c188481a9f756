"""The state of a search now: its running trials, those that ended, the best, the time left."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kdsearch.space import Params
from kdsearch.spec import Budget, Candidate, TrialRecord
from kdsearch.study.study import searched
from kdsearch.study.trial_notes import Proposal

if TYPE_CHECKING:
    from kdsearch.training.trainer import Epoch

_ENOUGH = 2  # trained trials, before the time left is estimated


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningTrial:
    """A trial that has begun.

    what: student and method. epochs: planned. epoch: the last that ended, 0 before the first.
    began: seconds since 1970. kind: see `kind_of`; `resumed` for a paused trial that continues.
    """

    number: int
    what: str
    epochs: int
    epoch: int = 0
    val: float | None = None
    began: float = 0.0
    kind: str = ""


class RunState:
    """What `Callbacks` updates before each event. Any thread may read it.

    total: trials of the search. epochs: of all trainings, 0 where the plan has none. ended: trials
    of the search. at_once: the most that ran at a time.
    """

    def __init__(
        self,
        done: Sequence[TrialRecord] = (),
        *,
        total: int = 0,
        epochs: int = 0,
        budget: Budget | None = None,
    ) -> None:
        self.total = total
        self.epochs = epochs
        self._trained = {record.number: record for record in done}
        self.budget = budget or Budget()
        self.ended = list(done)
        self.best = max(
            (record for record in done if record.state == "complete"),
            key=lambda record: record.val or 0.0,
            default=None,
        )
        self.running: Mapping[int, RunningTrial] = {}  # replaced whole: readers need no lock
        self.at_once = 0

    def begin(self, proposal: Proposal) -> None:
        """Add a running trial."""
        trial = RunningTrial(
            number=proposal.number,
            what=name_trial(proposal.params),
            epochs=planned_epochs(proposal.params),
            began=time.time(),
            kind=proposal.kind if proposal.stored is None else "resumed",
        )
        self.running = {**self.running, proposal.number: trial}
        self.at_once = max(self.at_once, len(self.running))

    def epoch(self, number: int, epoch: Epoch, epochs: int) -> None:
        """Update a running trial; `distill` has one that never began."""
        trial = self.running.get(number) or RunningTrial(number=number, what="", epochs=epochs)
        trial = replace(trial, epoch=epoch.number, epochs=epochs, val=epoch.val)
        self.running = {**self.running, number: trial}

    def end(self, record: TrialRecord, best: TrialRecord | None) -> None:
        """Remove a running trial, and count it if it is one of the search."""
        self.running = {n: trial for n, trial in self.running.items() if n != record.number}
        self.best = best
        self._trained[record.number] = record
        if not record.kind:
            self.ended = [*(r for r in self.ended if r.number != record.number), record]

    def seconds_left(self) -> float | None:
        """Return the seconds until the trainings end, None before they can be estimated.

        By epochs where the plan counts them, else by trials.
        """
        if not self.epochs:
            return forecast(self.ended, self.total - len(self.ended), at_once=self.at_once)
        own = [r for r in self._trained.values() if r.curve and r.reused_from is None]
        if len(own) < _ENOUGH:
            return None
        done = sum(len(record.curve) for record in own)
        each = sum(record.seconds for record in own) / done
        return each * max(0, self.epochs - done) / max(1, self.at_once)


def forecast(records: Sequence[TrialRecord], n_left: int, *, at_once: int) -> float | None:
    """Return the seconds that `n_left` more trials will take, `at_once` at a time.

    None before two have been trained. Rejected and reused trials count with their own seconds.
    """
    ended = searched(records)
    if sum(bool(record.curve) and record.reused_from is None for record in ended) < _ENOUGH:
        return None
    each = sum(record.seconds for record in ended) / len(ended)
    return each * max(0, n_left) / max(1, at_once)


def planned_epochs(params: Mapping[str, Any]) -> int:
    """Return the epochs that a trial is planned to train."""
    return Candidate.from_params(params).train.epochs


def name_trial(params: Params) -> str:
    """Return student family and method, as 'resnet + kd', of a refit '(seed 1)' too."""
    repeat = params.get("train.repeat")
    seed = f" (seed {repeat})" if repeat else ""
    return f"{params.get('student.family', '-')} + {params.get('method.name', 'kd')}{seed}"
