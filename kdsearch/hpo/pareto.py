"""Dominance, the front, its knee and its hypervolume. numpy only.

Convention: a point is (quality, cost); quality is maximised, cost minimised.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Points = Sequence[tuple[float, float]]


def front(points: Points) -> list[int]:
    """Return the indices of the non-dominated points, cheapest first.

    A point is dominated by one that is at least as good on both axes and better on one; of equal
    points the first stays. A point that holds a NaN is never on the front.
    """
    order = sorted(
        (i for i, (quality, cost) in enumerate(points) if quality == quality and cost == cost),
        key=lambda i: (points[i][1], -points[i][0], i),
    )
    kept: list[int] = []
    for index in order:
        if not kept or points[index][0] > points[kept[-1]][0]:
            kept.append(index)
    return kept


def hypervolume(points: Points, reference: tuple[float, float]) -> float:
    """Return the area that the points dominate, down to `reference` = (quality, cost)."""
    quality, limit = reference
    chosen = [points[i] for i in front(points)]
    costs = [*(min(cost, limit) for _, cost in chosen), limit]
    return sum(
        max(0.0, value - quality) * (costlier - cost)
        for (value, _), (cost, costlier) in zip(chosen, pairwise(costs), strict=True)
    )


def knee(points: Points) -> int | None:
    """Return the index of the front's knee: farthest above the chord between its two ends.

    Both axes are scaled to the front's extent, cost in the logarithm when it is positive
    throughout (Branke et al., PPSN 2004, on why knees are what users pick).
    """
    indices = front(points)
    if len(indices) < 3:
        return indices[-1] if indices else None
    values: npt.NDArray[np.float64] = np.array([points[i] for i in indices], dtype=np.float64)
    if (values[:, 1] > 0).all():
        values[:, 1] = np.log(values[:, 1])
    low, high = values.min(axis=0), values.max(axis=0)
    scaled = (values - low) / np.where(high > low, high - low, 1.0)
    return indices[int(np.argmax(scaled[:, 0] - scaled[:, 1]))]
