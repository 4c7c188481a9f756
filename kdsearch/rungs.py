"""A running trial at a rung, judged by the trials of its study that ended. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from kdsearch.spec import Candidate, Cost
from kdsearch.stopping import Curve, judge
from kdsearch.study import Study, searched


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """Where a running trial stands: its accuracies so far, of so many epochs, and its cost."""

    curve: tuple[float, ...]
    epochs: int
    cost: Cost


# Answers why the trial is to stop there, or None.
OnRung = Callable[[Rung], str | None]


class Judge:
    """Judges the running trials of a study, in any thread; controls are no peers.

    images: how many there are in the validation split.
    """

    def __init__(self, study: Study, *, images: int) -> None:
        self._study = study
        self._images = images
        self._ended: dict[int, Curve] = {}

    def __call__(self, rung: Rung) -> str | None:
        """Return why the trial is to stop there, or None."""
        for record in searched(self._study.records()):
            is_new = record.number not in self._ended and record.reused_from is None
            if is_new and record.curve and record.cost is not None:
                epochs = Candidate.from_params(record.params).train.epochs
                ended = Rung(curve=record.curve, epochs=epochs, cost=record.cost)
                is_complete = record.state == "complete"
                self._ended[record.number] = self._curve(ended, is_complete=is_complete)
        mode = self._study.request.stopping
        others = list(self._ended.values())
        verdict = judge(self._curve(rung), others, mode=mode, images=self._images)
        return verdict.reason if verdict.is_stop else None

    def _curve(self, rung: Rung, *, is_complete: bool = False) -> Curve:
        cost = float(getattr(rung.cost, self._study.budget.axis()))
        return Curve(values=rung.curve, epochs=rung.epochs, cost=cost, is_complete=is_complete)
