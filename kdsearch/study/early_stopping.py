"""A running trial at a rung, judged by the trials of its study that ended. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kdsearch.hpo.stopping import Curve, CurvePruner
from kdsearch.spec import Cost, TrialRecord
from kdsearch.study.study import OpenStudy, searched


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

    images: how many there are in the validation split. earlier: curves of a study of the same data
    whose costs are on the same axis; they only foretell.
    """

    def __init__(self, study: OpenStudy, *, images: int, earlier: Sequence[Curve] = ()) -> None:
        self._study = study
        self._earlier = [replace(curve, is_rival=False) for curve in earlier]
        self._ended: dict[int, Curve] = {}
        self.mode = study.config.stopping
        self._pruner = CurvePruner(mode=self.mode, images=images, variance=study.metric.variance)

    def __call__(self, rung: Rung) -> str | None:
        """Return why the trial is to stop there, or None."""
        axis = self._study.budget.axis()
        for record in searched(self._study.records()):
            if record.number not in self._ended and (curve := _curve_of(record, axis)):
                self._ended[record.number] = curve
        trial = Curve(values=rung.curve, epochs=rung.epochs, cost=_on(axis, rung.cost))
        others = [*self._earlier, *self._ended.values()]
        decision = self._pruner.prune(trial, others)
        return decision.reason if decision.should_prune else None


def curves_of(study: OpenStudy) -> list[Curve]:
    """Return the curves of the trials that ended, controls and reused ones left out."""
    axis = study.budget.axis()
    return [curve for r in searched(study.records()) if (curve := _curve_of(r, axis))]


def foretelling(study: OpenStudy, earlier: OpenStudy) -> list[Curve]:
    """Return the curves of an earlier study as far as they foretell those of this one.

    None where it saw other images, or traded another cost.
    """
    one, other = study.config, earlier.config
    is_alike = (one.data_key, one.image_size) == (other.data_key, other.image_size)
    return curves_of(earlier) if is_alike and one.budget.axis() == other.budget.axis() else []


def _curve_of(record: TrialRecord, axis: str) -> Curve | None:
    """Return what a trial teaches, None where it trained not at all or another stands for it."""
    if record.reused_from is not None or not record.curve or record.cost is None:
        return None
    return Curve(
        values=record.curve,
        epochs=record.epochs or len(record.curve),  # 0: a trial of before they were kept
        cost=_on(axis, record.cost),
        is_complete=record.state == "complete",
    )


def _on(axis: str, cost: Cost) -> float:
    return float(getattr(cost, axis))
