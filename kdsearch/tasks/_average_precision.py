"""The meter of detection: average precision as COCO measures it, and its noise by bootstrap.

Images are drawn with replacement (Efron, Annals of Statistics 7, 1979), with their matches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdsearch.data.base import is_labelled
from kdsearch.errors import DataError
from kdsearch.models.boxes import candidates, joined
from kdsearch.tasks._box_curves import curves_of
from kdsearch.tasks._coco import SIZES, Matches
from kdsearch.tasks.base import ClassScores, Details, Meter, Metric

MAP50 = Metric(key="map50", label="mAP50")
MAP = Metric(key="map", label="mAP50-95")
_RESAMPLES = 200  # a standard error is known to 1 / sqrt(2 * 200), 5 %
_LEAST_VARIANCE = 1e-4  # of one image: that of equal images would be 0


class AveragePrecision(Meter):
    """Mean over the classes with boxes of the area under precision against recall.

    key: of the metric that `value` returns: `map50` counts a box from an IoU of .5, `map` is the
    mean over .5 to .95. find: returns the boxes of answers, see `models/boxes.py`. Ignored objects
    count neither way. Batches are kept, so no graph replays this meter.
    """

    captures: ClassVar[bool] = False

    def __init__(
        self,
        classes: int,
        key: str = MAP50.key,
        find: Callable[[Tensor], Tensor] = candidates,
    ) -> None:
        self._classes = classes
        self._find = find
        self._key = key
        self._images = 0
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._batches: list[tuple[Tensor, Tensor]] = []

    def keep_images(self, count: int) -> None:
        """Measure the noise in `details`."""
        self._images = count

    def add(self, answer: Tensor, labels: Tensor) -> None:
        """Count a batch: answers [B, P, 4 + K], boxes [B, M, 5]."""
        self._batches.append((self._find(answer), labels.clone()))

    def value(self) -> float:
        """Return the metric in [0, 1]. Raises DataError without objects."""
        return _mean(self._matches(self._truth()).precision, self._key)

    def details(self) -> Details:
        """Return both metrics, AP of each class, recall by the size of objects, and noise."""
        truth = self._truth()
        matches = self._matches(truth)
        drawn = list(matches.resampled(_RESAMPLES)) if self._images > 1 else []
        codes = torch.cat([rows[:, 4] for rows in truth]).long()
        objects = codes[codes >= 0].bincount(minlength=self._classes).double()
        unbiased = len(truth) / max(1, len(truth) - 1)
        by_class = [_by_class(found, self._key) for found in drawn]
        variances = [_variance(column) for column in zip(*by_class, strict=True)]
        return Details(
            metrics={key: _mean(matches.precision, key) for key in (MAP50.key, MAP.key)}
            | _recall_by_size(matches),
            image_variances={
                key: max(
                    _LEAST_VARIANCE,
                    len(truth) * unbiased * float(np.var([_mean(found, key) for found in drawn])),
                )
                for key in (MAP50.key, MAP.key)
                if drawn
            },
            scores=ClassScores(
                label="AP50" if self._key == MAP50.key else "AP50-95",
                values=tuple(_by_class(matches.precision, self._key)),
                errors=tuple(v and math.sqrt(unbiased * v) for v in variances)
                or (None,) * self._classes,
                shares=tuple((objects / objects.sum()).tolist()),
            ),
            curves=curves_of(matches.precision, truth, self._found()),
        )

    def _truth(self) -> list[Tensor]:
        """Return the boxes [M, 5] of each labelled image. Raises DataError without objects."""
        truth = [row for _, labels in self._batches for row in labels[is_labelled(labels)].cpu()]
        if not any((rows[:, 4] >= 0).any() for rows in truth):
            raise DataError("there are no boxes to evaluate on")
        return truth

    def _found(self) -> list[Tensor]:
        """Return the boxes [n, 6] on each labelled image."""
        return [
            rows for answer, labels in self._batches for rows in joined(answer[is_labelled(labels)])
        ]

    def _matches(self, truth: Sequence[Tensor]) -> Matches:
        return Matches(truth, self._found(), self._classes)


def _by_class(precision: NDArray[Any], key: str) -> list[float | None]:
    """Return the AP of each class, None for one without objects."""
    thresholds = slice(1) if key == MAP50.key else slice(None)
    found = precision[thresholds, :, :, 0, 0].mean(axis=(0, 1)).tolist()
    return [None if value < 0 else value for value in found]


def _mean(precision: NDArray[Any], key: str) -> float:
    known = [value for value in _by_class(precision, key) if value is not None]
    return sum(known) / len(known) if known else 0.0


def _variance(values: Sequence[float | None]) -> float | None:
    """Return the variance of the numbers, None where there are none."""
    known = [value for value in values if value is not None]
    return float(np.var(known)) if known else None


def _recall_by_size(matches: Matches) -> dict[str, float]:
    """Return the share of the objects of each size that are found at IoU .5."""
    found = {}
    for place, name in enumerate(SIZES, start=1):
        recall = matches.recall[0, :, place, 0]
        if (recall >= 0).any():
            found[f"recall_{name}"] = float(recall[recall >= 0].mean())
    return found
