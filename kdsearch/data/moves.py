"""Boxes in a view: moved as `views.shown` moves the pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from kdsearch.data import zoom
from kdsearch.data.base import Augment
from kdsearch.data.boxes import PADDING, ignored
from kdsearch.data.sizes import Size
from kdsearch.data.views import ViewSeeds, placed, zoomed
from kdsearch.errors import DataError

LEAST_SHOWN = 0.25
"""Share of a box's area from which what a view shows of it is still the object."""


def boxes_moved(
    boxes: Tensor, index: Tensor, seeds: ViewSeeds, augment: Augment, size: Size
) -> Tensor:
    """Return boxes of the samples at `index`, float [B, M, 5], as a view shows them.

    boxes: [N, M, 5] of x1, y1, x2, y2 in fractions of the image, and a code, see `data/boxes.py`.
    size: (H, W) of the images. Boxes are cut at the border; below LEAST_SHOWN they are ignored,
    outside they become padding. Raises DataError for augmentation that boxes do not follow.
    """
    return _moved(boxes.index_select(0, index), index, seeds, augment, size)


def _moved(rows: Tensor, index: Tensor, seeds: ViewSeeds, augment: Augment, size: Size) -> Tensor:
    """Return the boxes [B, M, 5] of the samples at `index`, moved."""
    if augment.mix != "none" or augment.policy != "plain" or augment.area is not None:
        raise DataError(
            f"augment: boxes follow crops, mirroring and scale; not policy {augment.policy!r}, "
            f"mix {augment.mix!r} or resized crops"
        )
    down, right, mirrored = placed(index, seeds, augment)
    step = torch.full_like(down, zoom.ONE)
    down, right = ((offset - augment.pad) * zoom.ONE for offset in (down, right))
    if augment.scale:
        step, down, right = zoomed(index, seeds, augment, size)
    sides = rows.new_tensor([size[1], size[0]])
    offset = torch.stack([right, down], dim=1).to(rows.dtype) / zoom.ONE / sides
    scale = (step.to(rows.dtype) / zoom.ONE)[:, None, None]
    whole = ((rows[..., :4] - offset.repeat(1, 2)[:, None]) / scale).clamp(-64, 64)
    flipped = torch.stack(
        [1 - whole[..., 2], whole[..., 1], 1 - whole[..., 0], whole[..., 3]], dim=2
    )
    whole = torch.where(mirrored[:, None, None] == 1, flipped, whole)
    seen = whole.clamp(0, 1)
    share = _area(seen) / _area(whole).clamp(min=torch.finfo(rows.dtype).tiny)
    code = rows[..., 4]
    code = torch.where((code >= 0) & (share < LEAST_SHOWN), ignored(code), code)
    code = torch.where((code != PADDING) & (share <= 0), PADDING, code)
    return torch.cat([seen * (code != PADDING)[..., None], code[..., None]], dim=2)


def scored_boxes_moved(
    boxes: Tensor, index: Tensor, seeds: ViewSeeds, augment: Augment, size: Size
) -> Tensor:
    """Return boxes with a score as a view shows them, float [B, n, 6].

    boxes: [N, n, 6] of x1, y1, x2, y2, score and code. All else is as in `boxes_moved`.
    """
    corners, scores, codes = torch.split(boxes.index_select(0, index), [4, 1, 1], dim=2)
    moved = _moved(torch.cat([corners, codes], dim=2), index, seeds, augment, size)
    return torch.cat([moved[..., :4], scores, moved[..., 4:]], dim=2)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)
