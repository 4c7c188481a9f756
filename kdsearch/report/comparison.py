"""Two studies side by side: their fronts on one axis, hypervolumes from one reference, the spend.

No torch here. Accuracies are those of validation; a study that is running is compared as it stands.
Latencies of different targets are never held against each other.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from kdsearch.deploy.targets import described
from kdsearch.errors import SpecError
from kdsearch.hpo import pareto
from kdsearch.spec import UNITS, TrialRecord
from kdsearch.study.study import OpenStudy, searched

_LATENCY = "latency_ms"
_MARGIN = 0.1  # of a front's extent: without, its two ends would count for nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What one study found.

    front: (trial, accuracy, cost), cheapest first. hypervolume: a share of the area between the
    reference and the ideal corner of both fronts. seconds: of trials, added up.
    """

    study: str
    front: tuple[tuple[int, float, float], ...]
    hypervolume: float
    trials: int
    trained: int
    epochs: int
    seconds: float

    def dominates(self, accuracy: float, cost: float) -> bool:
        """Whether one of the front is at least as good on both axes and better on one."""
        return any(
            val >= accuracy and own <= cost and (val, own) != (accuracy, cost)
            for _, val, own in self.front
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Both sides, and what they were held against.

    reference: (accuracy, cost) that hypervolumes count from. targets: what latencies were measured
    on, in words. differs: what the requests differ in, as it is typed.
    """

    axis: str
    reference: tuple[float, float]
    sides: tuple[Side, Side]
    targets: tuple[str, str]
    differs: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """Return the content as plain values."""
        return asdict(self)


def compare(one: OpenStudy, other: OpenStudy, *, axis: str | None = None) -> Comparison:
    """Return how two studies compare on a cost.

    axis: `latency_ms`, `flops` or `params`; by default the one that both trade, FLOPs instead of
    latencies of different targets. Raises SpecError where they trade different ones and none is
    named, for such latencies, and where a study has no complete trial of known cost on it.
    """
    targets = str(described(one.config)), str(described(other.config))
    axis = axis or _shared_axis(one, other, is_one_target=targets[0] == targets[1])
    if axis not in UNITS:
        raise SpecError(f"--axis {axis!r}: expected one of {', '.join(UNITS)}")
    if axis == _LATENCY and targets[0] != targets[1]:
        raise SpecError(
            f"--axis {axis}: {one.name} was measured on {targets[0]}, {other.name} on "
            f"{targets[1]}, and what is faster on one may be slower on the other; give --axis "
            "flops or --axis params"
        )
    fronts = [_front(study, axis) for study in (one, other)]
    points = [(accuracy, cost) for front in fronts for _, accuracy, cost in front]
    best, cheapest = max(a for a, _ in points), min(c for _, c in points)
    worst, dearest = min(a for a, _ in points), max(c for _, c in points)
    reference = (
        worst - (_MARGIN * (best - worst) or _MARGIN * worst or _MARGIN),
        dearest + (_MARGIN * (dearest - cheapest) or _MARGIN * dearest),
    )
    whole = (best - reference[0]) * (reference[1] - cheapest)
    sides = [
        _side(study, front, reference, whole)
        for study, front in zip((one, other), fronts, strict=True)
    ]
    changed = one.config.changes(other.config).keys() - {"storage_study"}  # two never share it
    return Comparison(
        axis=axis,
        reference=reference,
        sides=(sides[0], sides[1]),
        targets=targets,
        differs=tuple(sorted(one.config.typed(name) for name in changed)),
    )


_Front = tuple[tuple[int, float, float], ...]


def _shared_axis(one: OpenStudy, other: OpenStudy, *, is_one_target: bool) -> str:
    axes = [one.budget.axis(), other.budget.axis()]
    if not is_one_target:
        axes = [axis for axis in axes if axis != _LATENCY] or ["flops"]
    if axes[0] != axes[-1]:
        raise SpecError(
            f"{one.name} trades {axes[0]} and {other.name} trades {axes[1]}; say which to compare: "
            f"--axis {axes[0]} or --axis {axes[1]}"
        )
    return axes[0]


def _front(study: OpenStudy, axis: str) -> _Front:
    """Return a study's front on an axis, which need not be the one it traded."""
    done = [
        (r.number, r.val, float(cost))
        for r in searched(study.records())
        if r.state == "complete" and r.val is not None
        if (cost := getattr(r.cost, axis)) is not None
    ]
    if not done:
        raise SpecError(f"the study {study.name!r} has no complete trial whose {axis} is known")
    return tuple(done[i] for i in pareto.front([(val, cost) for _, val, cost in done]))


def _side(study: OpenStudy, front: _Front, reference: tuple[float, float], whole: float) -> Side:
    records = searched(study.records())
    points = [(val, cost) for _, val, cost in front]
    return Side(
        study=study.name,
        front=front,
        hypervolume=pareto.hypervolume(points, reference) / whole,
        trials=len(records),
        trained=sum(_is_trained(record) for record in records),
        epochs=sum(len(record.curve) for record in records if _is_trained(record)),
        seconds=sum(record.seconds for record in records),
    )


def _is_trained(record: TrialRecord) -> bool:
    return bool(record.curve) and record.reused_from is None
