"""Layouts of a detector's answer in an ONNX file, recognised by shapes, names and metadata.

B images, P points, K classes; n boxes that are left after non-maximum suppression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.data.sizes import Size
from kdsearch.errors import SpecError

Kind: TypeAlias = Literal["kdsearch", "kept", "columns", "rows", "objectness", "suppressed", "pair"]
LAYOUTS: Mapping[Kind, str] = {
    "kdsearch": "`detections` [B, P, 4 + K]: x1, y1, x2, y2 in fractions, scores",
    "kept": "`objects` [B, n, 6]: x1, y1, x2, y2 in fractions, score, class",
    "columns": "[B, 4 + K, P]: centre x, y, width, height in pixels, scores",
    "rows": "[B, P, 4 + K]: the same, by rows",
    "objectness": "[B, P, 5 + K]: the same with the score of an object before those of classes",
    "suppressed": "[B, n, 6]: x1, y1, x2, y2 in pixels, score, class",
    "pair": "two outputs, boxes [B, P, 4] as x1, y1, x2, y2 and scores [B, P, K]",
}
_FRACTION = 2.0  # the largest edge of boxes in fractions; boxes may leave the image


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The layout of an answer. classes: K.

    Of a pair: boxes: the place of that output. is_fraction: whether boxes are fractions.
    """

    kind: Kind
    classes: int
    boxes: int = 0
    is_fraction: bool = False

    def __call__(self, outputs: Sequence[Tensor], size: Size) -> tuple[Tensor, Tensor]:
        """Return boxes [B, P, 4] in fractions of the input and scores [B, P, K].

        size: (H, W) of the input in pixels. Raises SpecError for a class beyond K.
        """
        found = outputs[0].float()
        if self.kind == "kdsearch":
            return found[..., :4], found[..., 4:]
        if self.kind == "pair":
            boxes, scores = (outputs[place].float() for place in (self.boxes, 1 - self.boxes))
            return (boxes if self.is_fraction else _in_fractions(boxes, size)), scores
        if self.kind == "kept":
            return found[..., :4], self._one_hot(found[..., 4], found[..., 5])
        if self.kind == "suppressed":
            return _in_fractions(found[..., :4], size), self._one_hot(found[..., 4], found[..., 5])
        if self.kind == "columns":
            found = found.transpose(1, 2)
        near, sides = found[..., :2] - found[..., 2:4] / 2, found[..., 2:4]
        boxes = torch.cat([near, near + sides], dim=2)
        scores = found[..., 4:]
        if self.kind == "objectness":
            scores = scores[..., :1] * scores[..., 1:]
        return _in_fractions(boxes, size), scores

    def _one_hot(self, scores: Tensor, codes: Tensor) -> Tensor:
        """Return scores [B, n, K] of one score and class a box; rows without a score are empty."""
        codes = torch.where(scores > 0, codes, 0.0).round().long()
        if len(codes) and not ((codes >= 0) & (codes < self.classes)).all():
            raise SpecError(f"a box has the class {int(codes.max())} of {self.classes}, from 0")
        return F.one_hot(codes, self.classes) * scores[..., None]


def find_layout(
    outputs: Mapping[str, Tensor], *, classes: int | None, expected: int, task: str = ""
) -> Layout:
    """Return the layout of a file's outputs on a few images.

    classes: of the file, None where it states none; it then has those of the data, `expected`.
    task: that the file's metadata state. Raises SpecError for outputs that fit none, or several.
    """
    count = classes or expected
    shapes = [tuple(found.shape) for found in outputs.values()]
    if len(shapes) == 2 and all(len(shape) == 3 for shape in shapes):
        widths = sorted(shape[2] for shape in shapes)
        if widths == sorted((4, count)) and shapes[0][1] == shapes[1][1]:
            place = _place_of_boxes(outputs)
            is_fraction = float(list(outputs.values())[place].max()) <= _FRACTION
            return Layout(kind="pair", classes=count, boxes=place, is_fraction=is_fraction)
    if len(shapes) != 1 or len(shapes[0]) != 3:
        raise SpecError(_text(outputs, classes, expected, "none fits"))
    ((name, found),) = outputs.items()
    _, rows, columns = found.shape
    if name == "objects" and columns == 6:
        return Layout(kind="kept", classes=count)
    if name == "detections" or task == "detection":
        if columns != 4 + count:
            raise SpecError(_text(outputs, classes, expected, "none fits"))
        return Layout(kind="kdsearch", classes=count)
    fits: list[Kind] = []
    fits += ["columns"] if rows == 4 + count else []
    fits += ["rows"] if columns == 4 + count else []
    fits += ["objectness"] if columns == 5 + count else []
    fits += ["suppressed"] if columns == 6 else []
    if "suppressed" in fits and len(fits) > 1 and "columns" not in fits:
        # A score is hardly ever a whole number in all places; a class is.
        is_class = bool((found[..., 5] == found[..., 5].round()).all())
        fits = ["suppressed"] if is_class else [kind for kind in fits if kind != "suppressed"]
    if len(fits) != 1:
        what = f"{' and '.join(fits)} fit" if fits else "none fits"
        raise SpecError(_text(outputs, classes, expected, what))
    return Layout(kind=fits[0], classes=count)


def _place_of_boxes(outputs: Mapping[str, Tensor]) -> int:
    """Return which of two outputs are the boxes; of 4 classes names decide."""
    boxes = [found.shape[2] == 4 for found in outputs.values()]
    if all(boxes):
        boxes = ["box" in name.lower() for name in outputs]
    if sum(boxes) != 1:
        raise SpecError(
            f"its outputs {' and '.join(outputs)} have one shape: which are the boxes is not "
            "known; name that output `boxes`"
        )
    return boxes.index(True)


def _in_fractions(boxes: Tensor, size: Size) -> Tensor:
    height, width = size
    return boxes / boxes.new_tensor([width, height, width, height])


def _text(outputs: Mapping[str, Tensor], classes: int | None, expected: int, what: str) -> str:
    shown = ", ".join(f"{name} {list(found.shape)}" for name, found in outputs.items())
    layouts = "\n  ".join(f"{kind}: {text}" for kind, text in LAYOUTS.items())
    of = f"of the file's {classes} classes"
    if classes is None:
        of = (
            f"of {expected} classes, the data's: the file states none in its metadata (`names`); "
            "--teacher-classes FILE lists them"
        )
    return f"its outputs are {shown}; of the layouts that are known, {what}, {of}\n  {layouts}"
