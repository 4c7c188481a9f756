"""How a study's front grows with its complete trials, and when it has stopped. numpy only."""

from __future__ import annotations

from collections.abc import Sequence

from kdsearch.hpo.pareto import Points, hypervolume

# 195 students of measured cost and accuracy in 200 random orders: looking back over 5, 10, 20 and
# 30 trials, a study ended after 16, 33, 63 and 94 of them (median) with 94.8, 96.5, 98.2 and
# 98.8 % of the hypervolume of all.
FLAT_AFTER = 20
_LEAST_GROWTH = 0.001
_BEYOND = 1.1  # a point at the limit itself would count for nothing


def hypervolumes(
    points: Points, counts: Sequence[int], *, limit: float | None = None
) -> list[float]:
    """Return the hypervolume of the first so many points (quality, cost), for each count.

    Its reference is quality 0 and a tenth more than the limit of the cost, or than the dearest of
    all points where there is no limit: one for all counts, so that it never falls.
    """
    if not points:
        return [0.0 for _ in counts]
    reference = 0.0, _BEYOND * (limit or max(cost for _, cost in points))
    return [hypervolume(points[:count], reference) for count in counts]


def is_flat(points: Points, *, after: int, limit: float | None = None) -> bool:
    """Return whether the last `after` points have raised the hypervolume by 0.1 % at most."""
    if len(points) <= after:
        return False
    counts = (len(points) - after, len(points))
    before, now = hypervolumes(points, counts, limit=limit)
    return now <= (1 + _LEAST_GROWTH) * before
