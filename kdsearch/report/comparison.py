"""Compare two studies: their fronts on one axis, hypervolumes from one reference, their effort.

No torch. Scores are those of validation. A running study is compared with its trials so far.
Latencies of different targets are never compared.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from kdsearch.deploy.targets import target_info
from kdsearch.errors import SpecError
from kdsearch.hpo import pareto
from kdsearch.spec import UNITS
from kdsearch.study.study import OpenStudy, searched
from kdsearch.tasks.base import Metric

_LATENCY = "latency_ms"
_MARGIN = 0.1  # of a front's extent: without it, its two ends would add no hypervolume


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedStudy:
    """The front and the effort of one study.

    front: (trial, score, cost), cheapest first. hypervolume: share of the area between the
    reference and the ideal corner of both fronts. seconds: summed over trials.
    """

    study: str
    front: tuple[tuple[int, float, float], ...]
    hypervolume: float
    trials: int
    trained: int
    epochs: int
    seconds: float

    def dominates(self, score: float, cost: float) -> bool:
        """Return True if a point of the front is no worse on both axes and better on one."""
        return any(
            val >= score and own <= cost and (val, own) != (score, cost)
            for _, val, own in self.front
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Both studies and their common reference.

    reference: (score, cost) of the corner of the hypervolumes. targets: device and runtime of the
    latencies. differs: the flags in which the configurations differ.
    """

    metric: Metric
    axis: str
    reference: tuple[float, float]
    sides: tuple[ComparedStudy, ComparedStudy]
    targets: tuple[str, str]
    differs: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return the content as plain values; the metric is its key."""
        return {**asdict(self), "metric": self.metric.key}


def compare(one: OpenStudy, other: OpenStudy, *, axis: str | None = None) -> Comparison:
    """Return the comparison of two studies on one cost.

    axis: `latency_ms`, `flops` or `params`; by default the cost that both studies optimise, or
    FLOPs if their targets differ. Raises SpecError for different metrics, for different costs
    without an axis, for latencies of different targets, and without a complete trial.
    """
    if one.metric.key != other.metric.key:
        raise SpecError(
            f"{one.name} is measured by {one.metric.label} and {other.name} by "
            f"{other.metric.label}: they cannot be compared"
        )
    targets = str(target_info(one.config)), str(target_info(other.config))
    axis = axis or _shared_axis(one, other, is_one_target=targets[0] == targets[1])
    if axis not in UNITS:
        raise SpecError(f"--axis {axis!r}: expected one of {', '.join(UNITS)}")
    if axis == _LATENCY and targets[0] != targets[1]:
        raise SpecError(
            f"--axis {axis}: {one.name} was measured on {targets[0]}, {other.name} on "
            f"{targets[1]}; latencies of different targets cannot be compared; give --axis flops "
            "or --axis params"
        )
    fronts = [_front(study, axis) for study in (one, other)]
    points = [(score, cost) for front in fronts for _, score, cost in front]
    best, cheapest = max(a for a, _ in points), min(c for _, c in points)
    worst, costliest = min(a for a, _ in points), max(c for _, c in points)
    reference = (
        worst - (_MARGIN * (best - worst) or _MARGIN * worst or _MARGIN),
        costliest + (_MARGIN * (costliest - cheapest) or _MARGIN * costliest),
    )
    whole = (best - reference[0]) * (reference[1] - cheapest)
    sides = _side(one, fronts[0], reference, whole), _side(other, fronts[1], reference, whole)
    changed = one.config.changes(other.config).keys() - {"storage_study"}  # two never share it
    return Comparison(
        metric=one.metric,
        axis=axis,
        reference=reference,
        sides=sides,
        targets=targets,
        differs=tuple(sorted(one.config.flag(name) for name in changed)),
    )


_Front = tuple[tuple[int, float, float], ...]


def _shared_axis(one: OpenStudy, other: OpenStudy, *, is_one_target: bool) -> str:
    axes = [one.budget.axis(), other.budget.axis()]
    if not is_one_target:
        axes = [axis for axis in axes if axis != _LATENCY] or ["flops"]
    if axes[0] != axes[-1]:
        raise SpecError(
            f"{one.name} optimises {axes[0]} and {other.name} optimises {axes[1]}; give "
            f"--axis {axes[0]} or --axis {axes[1]}"
        )
    return axes[0]


def _front(study: OpenStudy, axis: str) -> _Front:
    """Return the front of a study on any axis, also one that it did not optimise."""
    done = [
        (r.number, r.val, float(cost))
        for r in searched(study.records())
        if r.state == "complete" and r.val is not None
        if (cost := getattr(r.cost, axis)) is not None
    ]
    if not done:
        raise SpecError(f"the study {study.name!r} has no complete trial whose {axis} is known")
    return tuple(done[i] for i in pareto.front([(val, cost) for _, val, cost in done]))


def _side(
    study: OpenStudy, front: _Front, reference: tuple[float, float], whole: float
) -> ComparedStudy:
    records = searched(study.records())
    trained = [record for record in records if record.curve and record.reused_from is None]
    points = [(val, cost) for _, val, cost in front]
    return ComparedStudy(
        study=study.name,
        front=front,
        hypervolume=pareto.hypervolume(points, reference) / whole,
        trials=len(records),
        trained=len(trained),
        epochs=sum(len(record.curve) for record in trained),
        seconds=sum(record.seconds for record in records),
    )
