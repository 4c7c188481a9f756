"""Decide at a rung whether to prune a trial, from the trials that ended. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kdsearch.hpo.stopping import Curve, CurvePruner
from kdsearch.spec import INITS, Cost, TrialRecord
from kdsearch.study.study import OpenStudy, searched


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A running trial at a rung: the metric after each epoch so far, planned epochs, cost.

    init: of its student. Curves of students that start alike are compared, and no others: an
    inherited one is ahead at first, whatever the end.
    """

    curve: tuple[float, ...]
    epochs: int
    cost: Cost
    init: str = INITS[0]


# Returns the reason to prune the trial at a rung, or None.
OnRung = Callable[[Rung], str | None]


class RungPruner:
    """Decides from the curves that `update` adds; it can be sent to another process.

    earlier: curves of an earlier study, which only serve predictions.
    """

    def __init__(self, pruner: CurvePruner, *, axis: str, earlier: Sequence[Curve] = ()) -> None:
        self.mode = pruner.mode
        self._pruner = pruner
        self._axis = axis
        self._earlier = [replace(curve, is_rival=False) for curve in earlier]
        self._ended: dict[int, Curve] = {}

    def update(self, records: Sequence[TrialRecord]) -> None:
        """Add the curves of trials of the search that ended; controls and reused ones have none."""
        for record in searched(records):
            if record.number not in self._ended and (curve := _curve_of(record, self._axis)):
                self._ended[record.number] = curve

    def __call__(self, rung: Rung) -> str | None:
        """Return the reason to prune the trial there, or None."""
        cost = _on(self._axis, rung.cost)
        trial = Curve(values=rung.curve, epochs=rung.epochs, cost=cost, schedule=rung.init)
        decision = self._pruner.prune(trial, [*self._earlier, *self._ended.values()])
        return decision.reason if decision.should_prune else None


class StudyPruner:
    """Decides from the trials of a study that have ended, in any thread.

    images: of the validation split.
    """

    def __init__(self, study: OpenStudy, *, images: int, earlier: Sequence[Curve] = ()) -> None:
        self._study = study
        self.mode = study.config.pruning
        pruner = CurvePruner(mode=self.mode, images=images, variance=study.metric.variance)
        self.rule = RungPruner(pruner, axis=study.budget.axis(), earlier=earlier)

    def __call__(self, rung: Rung) -> str | None:
        """Return the reason to prune the trial there, or None."""
        self.rule.update(self._study.records())
        return self.rule(rung)


def curves_of(study: OpenStudy) -> list[Curve]:
    """Return the curves of the trials that ended, without controls and reused ones."""
    axis = study.budget.axis()
    return [curve for r in searched(study.records()) if (curve := _curve_of(r, axis))]


def earlier_curves(study: OpenStudy, earlier: OpenStudy) -> list[Curve]:
    """Return the curves of an earlier study; none if its images or its cost axis differ."""
    one, other = study.config, earlier.config
    is_alike = (one.data_key, one.image_size) == (other.data_key, other.image_size)
    return curves_of(earlier) if is_alike and one.budget.axis() == other.budget.axis() else []


def _curve_of(record: TrialRecord, axis: str) -> Curve | None:
    """Return the curve of a trial that was trained itself, else None."""
    if record.reused_from is not None or not record.curve or record.cost is None:
        return None
    params = record.params
    init = params.get("student.init", INITS[0])  # that of all families, or the family's own
    return Curve(
        values=record.curve,
        epochs=record.epochs or len(record.curve),
        cost=_on(axis, record.cost),
        schedule=str(params.get(f"student.{params.get('student.family')}.init", init)),
        is_complete=record.state == "complete",
    )


def _on(axis: str, cost: Cost) -> float:
    return float(getattr(cost, axis))
