"""Boxes matched by faster-coco-eval, which prints nothing here and needs no files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kdsearch.data.boxes import PADDING, ignored
from kdsearch.models.boxes import MAX_BOXES

SIZES = ("small", "medium", "large")
_SIDES = (0.05, 0.15)  # small and medium objects: square root of their share of the image


class Matches:
    """The matches of found boxes with true ones, by image.

    truth: boxes [M, 5] of each image. found: [n, 6] of each, see `models/boxes.py`. precision: by
    IoU (.5, .55, ... .95), recall (0, .01, ... 1), class, size (all, then SIZES) and 1, the number
    of limits on boxes; -1 where there are no objects. recall: the same without recall.
    """

    def __init__(self, truth: Sequence[Tensor], found: Sequence[Tensor], classes: int) -> None:
        from faster_coco_eval import COCO, COCOeval_faster

        self._images, self._classes = len(truth), classes
        images = {
            "images": [{"id": i + 1} for i in range(len(truth))],
            "categories": [{"id": k, "name": str(k)} for k in range(classes)],
        }
        sides = []
        for rows in (_truth(truth), _found(found)):
            side = COCO(print_function=_silent)
            annotations = [{"id": number, **row} for number, row in enumerate(rows, start=1)]
            side.dataset = {**images, "annotations": annotations}
            side.createIndex()
            sides.append(side)
        self._evaluated = COCOeval_faster(
            *sides, "bbox", print_function=_silent, separate_eval=True
        )
        edges = [0.0, *(side**2 for side in _SIDES), 1e9]
        params = self._evaluated.params
        params.areaRng = [[0.0, 1e9], *map(list, pairwise(edges))]
        params.areaRngLbl, params.maxDets = ["all", *SIZES], [MAX_BOXES]
        self._evaluated.evaluate()
        self._evaluated.accumulate()
        self.precision: NDArray[Any] = np.asarray(self._evaluated.eval["precision"])
        self.recall: NDArray[Any] = np.asarray(self._evaluated.eval["recall"])

    def resampled(self, count: int) -> Iterator[NDArray[Any]]:
        """Yield the precision of so many draws of the images; equal matches give equal draws."""
        from faster_coco_eval.faster_eval_api_cpp import COCOevalAccumulate

        matches = np.empty(len(self._evaluated._evalImgs_cpp), dtype=object)
        matches[:] = self._evaluated._evalImgs_cpp
        by_image = matches.reshape(self._classes * (1 + len(SIZES)), self._images)
        generator = np.random.default_rng(0)
        for _ in range(count):
            chosen = by_image[:, generator.integers(self._images, size=self._images)]
            drawn = COCOevalAccumulate(self._evaluated._paramsEval, chosen.ravel().tolist())
            yield np.asarray(drawn["precision"])


def _truth(images: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
    for image, rows in enumerate(images, start=1):
        for *corners, code in rows[rows[:, 4] != PADDING].double().tolist():
            yield {
                "image_id": image,
                "category_id": int(code if code >= 0 else ignored(code)),
                "iscrowd": int(code < 0),
                **_box(corners),
            }


def _found(images: Sequence[Tensor]) -> Iterator[dict[str, Any]]:
    for image, rows in enumerate(images, start=1):
        for *corners, score, kind in rows.double().tolist():
            yield {
                "image_id": image,
                "category_id": int(kind),
                "score": score,
                "iscrowd": 0,
                **_box(corners),
            }


def _box(corners: Sequence[float]) -> dict[str, Any]:
    left, top, right, bottom = corners
    width, height = right - left, bottom - top
    return {"bbox": [left, top, width, height], "area": width * height}


def _silent(*_: object) -> None:
    """Print nothing."""
