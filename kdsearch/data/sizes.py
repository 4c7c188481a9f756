"""Sizes of images: (H, W) in pixels, or one number for a square; how images are fitted to one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

FITS = ("crop", "pad", "squash")
MAX_MEGAPIXELS = 64.0  # of an image that is read

Size: TypeAlias = tuple[int, int]
"""(H, W) in pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoding:
    """How images are decoded; see `data/pixels`.

    side: the longer one in pixels; None: the images' own, or at most 224.
    """

    side: int | None = None
    fit: str = FITS[0]
    max_megapixels: float = MAX_MEGAPIXELS


def as_size(side: int | Size) -> Size:
    """Return (H, W) of a side, which is a square's, or of a pair."""
    return (side, side) if isinstance(side, int) else side


def size_text(size: Size) -> str:
    """Return `32` for a square and `24 x 32` for (H, W) = (24, 32)."""
    return str(size[0]) if size[0] == size[1] else f"{size[0]} x {size[1]}"


def whole_strides(side: float, *, stride: int = 32) -> int:
    """Return a side rounded up to a multiple of the stride."""
    return max(1, math.ceil(side / stride - 1e-6)) * stride


def placed(whole: Size, canvas: Size) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of an image on a canvas: as large as fits, centred."""
    scale = min(side / own for side, own in zip(canvas, whole, strict=True))
    height, width = (max(1, round(scale * own)) for own in whole)
    return (canvas[0] - height) // 2, (canvas[1] - width) // 2, height, width


def scaled_size(size: int | Size, longer: int) -> Size:
    """Return a size scaled to a longer side, rounded to whole pixels; 0 leaves it as it is."""
    sides = as_size(size)
    if not longer:
        return sides
    height, width = (max(1, round(side * longer / max(sides))) for side in sides)
    return height, width
