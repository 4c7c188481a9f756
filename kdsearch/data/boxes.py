"""Boxes of objects as annotated, and on the canvas of their image; rules that all readers share.

An annotated box is x1, y1, x2, y2 in pixels: the left, upper, right and lower edges, from the
image's upper left corner; a pixel is one wide. A stored one is in fractions of the canvas, so that
networks of any input size learn it. Its code is a class from 0; -1 pads; -2 - class is an object
that is neither an example nor a mistake, as a crowd is.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from kdsearch.data.base import DETECTION, Placed, Sample, Source
from kdsearch.data.folder import SPLITS, is_image
from kdsearch.data.headers import SWAPPED, upright
from kdsearch.data.pixels import UnreadableError
from kdsearch.data.sizes import Size, placed
from kdsearch.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

PADDING = -1
MIN_SIDE = 1.0  # px, of a box as annotated
_CLIPPED = 1.0  # px outside of the image that are worth a note; less is rounding
Corners: TypeAlias = tuple[float, float, float, float]
Row: TypeAlias = tuple[float, float, float, float, int]
Code = TypeVar("Code", int, float, "Tensor")


def ignored(label: Code) -> Code:
    """Return the code of an object of a class that is neither an example nor a mistake.

    Of that code it returns the class.
    """
    return -2 - label


@dataclass(frozen=True, slots=True, eq=False)
class Boxes(Placed):
    """The boxes of an image. rows: x1, y1, x2, y2, code, in pixels of the image as annotated.

    most: the most boxes of any image of the source, at least 1. stated: (H, W) of the image as
    annotated, before or after its EXIF rotation; None: not stated, and after it.
    """

    rows: Sequence[Row]
    most: int
    stated: Size | None = None

    def decode(self, image: Path | bytes | Image, size: Size) -> NDArray[np.float32]:
        """Return [most, 5] in fractions of the canvas.

        Raises UnreadableError for an image of another size.
        """
        whole, turn = upright(image)
        found = np.array(self.rows, np.float64).reshape(-1, 5)
        corners = found[:, :4]
        if self.stated not in (None, whole):
            if turn not in SWAPPED or self.stated != whole[::-1]:
                raise UnreadableError(
                    f"it has {_shape(whole)} pixels (width x height), its annotation states "
                    f"{_shape(self.stated)}"
                )
            corners = _turned(corners, turn, whole)
        height, width = whole
        limits = np.array([width, height, width, height])
        inside = corners.clip(0, limits)
        empty = (inside[:, :2] >= inside[:, 2:]).any(axis=1)
        if empty.any():
            place = int(empty.argmax())
            raise UnreadableError(
                f"its box {place} {_listed(corners[place])} lies outside of its {_shape(whole)} "
                "pixels (width x height)"
            )
        top, left, inner_height, inner_width = placed(whole, size)
        scale = np.array([inner_width / width, inner_height / height] * 2)
        label = padding(self.most)
        shown = inside * scale + np.array([left, top] * 2)
        label[: len(found), :4] = shown / np.array([size[1], size[0]] * 2)
        label[: len(found), 4] = found[:, 4]
        return label


def padding(most: int) -> NDArray[np.float32]:
    """Return the label of an image without boxes, [most, 5]."""
    label = np.zeros((most, 5), np.float32)
    label[:, 4] = PADDING
    return label


def unlabelled(most: int) -> NDArray[np.float32]:
    """Return the label of an image of which nothing is known, [most, 5]."""
    return np.full((most, 5), np.nan, np.float32)


def _turned(corners: NDArray[np.float64], turn: int, whole: Size) -> NDArray[np.float64]:
    """Return boxes [n, 4] of the stored pixels after an EXIF rotation that gives (H, W)."""
    height, width = whole
    x1, y1, x2, y2 = corners.T
    if turn in (6, 7):  # a row of the file becomes a column, the first one rightmost
        y1, y2 = width - y2, width - y1
    if turn in (7, 8):
        x1, x2 = height - x2, height - x1
    return np.stack([y1, x1, y2, x2], axis=1)


def _shape(size: Size | None) -> str:
    return "no" if size is None else f"{size[1]} x {size[0]}"


def _listed(corners: Iterable[float]) -> str:
    return f"({', '.join(f'{value:g}' for value in corners)})"


class Checks:
    """Rules for boxes that all readers share; collects what is left out, and what is clipped.

    root: the folder or file that the names of boxes lie below. left_out: see Source.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.left_out: defaultdict[str, list[str]] = defaultdict(list)
        self._clipped: list[str] = []

    def kept(self, where: str, corners: Corners, stated: Size | None) -> Corners | None:
        """Return a box within its image, or None for one that is left out.

        where: file and annotation, below the root. Raises DataError for x2 < x1 or y2 < y1.
        """
        if not all(map(math.isfinite, corners)):
            self.left_out["boxes that are not finite"].append(where)
            return None
        x1, y1, x2, y2 = corners
        if x2 < x1 or y2 < y1:
            raise DataError(
                f"{self.root / where}: the box {_listed(corners)} (x1, y1, x2, y2) ends before it "
                "begins; mend or remove it"
            )
        if x2 - x1 < MIN_SIDE or y2 - y1 < MIN_SIDE:
            self.left_out["boxes narrower or lower than 1 pixel"].append(where)
            return None
        if stated is None:
            return corners
        height, width = stated
        left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
        if right - left < MIN_SIDE or bottom - top < MIN_SIDE:
            self.left_out["boxes outside of their image"].append(where)
            return None
        if max(left - x1, top - y1, x2 - right, y2 - bottom) > _CLIPPED:
            self._clipped.append(where)
        return left, top, right, bottom

    @property
    def notes(self) -> list[str]:
        """Return a sentence on the boxes that were clipped, if any."""
        if not self._clipped:
            return []
        count, first = len(self._clipped), self._clipped[0]
        return [f"Clipped: {count:,} boxes that are partly outside of their image ({first})"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotated:
    """An image of a source. name: below the root. rows, stated: see Boxes; None: unlabelled."""

    name: str
    content: Path
    rows: Sequence[Row] | None
    stated: Size | None = None


def source_of(
    root: Path,
    splits: Mapping[str, Sequence[Annotated]],
    *,
    classes: Sequence[str],
    files: Iterable[Path],
    checks: Checks,
    notes: Iterable[str] = (),
) -> Source:
    """Return the source of images with boxes. files: those that state the boxes.

    Raises DataError where train has no boxes.
    """
    require_boxes(root, (len(image.rows or ()) for image in splits.get("train", ())), checks)
    most = most_of(image.rows for images in splits.values() for image in images)
    return Source(
        name=root.resolve().name,
        task=DETECTION,
        classes=tuple(classes),
        splits={
            split: [_sample(image, most) for image in images] for split, images in splits.items()
        },
        content=[
            ("classes", json.dumps([DETECTION, *classes]).encode()),
            *((below(path, root), path) for path in files),
            *((image.name, image.content) for images in splits.values() for image in images),
        ],
        is_padded=True,
        left_out={reason: names for reason, names in checks.left_out.items() if names},
        notes=[*notes, *checks.notes],
    )


def below(path: Path, root: Path) -> str:
    """Return the name of a file below a root; of one that is elsewhere, its path."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def images_in(folder: Path) -> list[Path]:
    """Return the images in a folder and all folders below it, by name."""
    return sorted(path for path in folder.rglob("*") if is_image(path.name) and path.is_file())


def unlabelled_images(root: Path) -> dict[str, list[Annotated]]:
    """Return the images in `unlabeled/` as a split, or none where there is no such folder."""
    names = [name + year for name in SPLITS["unlabeled"] for year in ("", "2017")]
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    images = [] if folder is None else images_in(folder)
    spare = [Annotated(name=below(path, root), content=path, rows=None) for path in images]
    return {"unlabeled": spare} if spare else {}


def _sample(image: Annotated, most: int) -> Sample:
    label = unlabelled(most) if image.rows is None else Boxes(image.rows, most, image.stated)
    return Sample(name=image.name, content=image.content, label=label)


def most_of(rows: Iterable[Sequence[Row] | None]) -> int:
    """Return the most boxes of an image, at least 1."""
    return max(1, max((len(found or ()) for found in rows), default=1))


def require_boxes(root: Path, counts: Iterable[int], checks: Checks) -> None:
    """Raise DataError where no image of train has a box. counts: of boxes, by image."""
    if any(counts):
        return
    found = [
        f"{len(names):,} {reason} ({names[0]})"
        for reason, names in checks.left_out.items()
        if names
    ]
    why = f"; left out: {', '.join(found)}" if found else ""
    raise DataError(f"{root}: no image of train has a box, and detection learns from boxes{why}")
