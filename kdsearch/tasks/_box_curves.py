"""Curves of a detector: precision over recall by class, and recall by the size of objects."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kdsearch.models.boxes import area_of
from kdsearch.tasks._box_strip import missed
from kdsearch.tasks.base import BoxCurves

DRAWN = 0.25  # score from which a box is drawn, as by predict.py
_EVERY = 5  # of the 101 recalls of COCO
_GROUPS, _LEAST = 6, 20  # of objects by size: at most so many groups, of at least so many objects


def curves_of(
    precision: NDArray[Any], truth: Sequence[Tensor], found: Sequence[Tensor]
) -> BoxCurves:
    """Return the curves of an evaluation.

    precision: see `Matches`. truth: boxes [M, 5] of each image. found: boxes [n, 6] of each.
    """
    columns = precision[0, ::_EVERY, :, 0, 0].T
    sides, is_found = [np.zeros(0)], [np.zeros(0, bool)]
    for rows, boxes in zip(truth, found, strict=True):
        true = rows[rows[:, 4] >= 0]
        drawn = boxes[boxes[:, 4] >= DRAWN][:, [0, 1, 2, 3, 5]]
        sides.append(area_of(true[:, :4]).sqrt().double().numpy())
        is_found.append(~missed(true.numpy(), drawn.numpy()))
    edges, objects, right = _by_size(np.concatenate(sides), np.concatenate(is_found))
    return BoxCurves(
        precision=tuple(
            None if (column < 0).any() else tuple(np.round(column, 4).tolist())
            for column in columns
        ),
        sides=edges,
        objects=objects,
        found=right,
        score=DRAWN,
    )


def _by_size(
    sides: NDArray[np.float64], is_found: NDArray[np.bool_]
) -> tuple[tuple[float, ...], tuple[int, ...], tuple[int, ...]]:
    """Return the edges of groups of about equal numbers, and how many are in each, and found."""
    groups = max(1, min(_GROUPS, len(sides) // _LEAST))
    edges = np.unique(np.quantile(sides, np.linspace(0, 1, groups + 1)))
    edges = edges if len(edges) > 1 else np.array([edges[0], edges[0] * 1.01])
    place = np.searchsorted(edges[1:-1], sides, side="right")
    objects = np.bincount(place, minlength=len(edges) - 1)
    right = np.bincount(place, weights=is_found, minlength=len(edges) - 1)
    assert all(low < high for low, high in pairwise(edges))
    return (
        tuple(np.round(edges, 5).tolist()),
        tuple(objects.tolist()),
        tuple(right.astype(int).tolist()),
    )
