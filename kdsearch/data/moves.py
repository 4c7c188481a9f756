"""Boxes in a view: moved as `views.shown` moves the pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from kdsearch.data.base import Augment
from kdsearch.data.boxes import PADDING, ignored
from kdsearch.data.sizes import Size
from kdsearch.data.views import ViewSeeds, tiles
from kdsearch.data.zoom import ONE
from kdsearch.errors import DataError

LEAST_SHOWN = 0.25
"""Share of a box's area from which what a view shows of it is still the object."""


def boxes_moved(
    boxes: Tensor, index: Tensor, seeds: ViewSeeds, augment: Augment, size: Size
) -> Tensor:
    """Return boxes of the samples at `index`, float [B, M, 5], as a view shows them.

    A mosaic shows those of four samples, [B, 4 * M, 5].

    boxes: [N, M, 5] of x1, y1, x2, y2 in fractions of the image, and a code, see `data/boxes.py`;
    [N, M, 6] with a score before the code, which stays. size: (H, W) of the images. Boxes are cut
    at the border; below LEAST_SHOWN they are ignored, outside they become padding. Raises DataError
    for augmentation that boxes do not follow.
    """
    if augment.mix != "none" or augment.policy != "plain" or augment.area is not None:
        raise DataError(
            "augment: boxes follow crops, mirroring, scale and mosaics, not policy "
            f"{augment.policy!r}, mix {augment.mix!r} or resized crops"
        )
    samples, moves, mirrored = tiles(index, seeds, augment, size)
    found = [
        _moved(boxes.index_select(0, own), moved, mirrored, size)
        for own, moved in zip(samples, moves, strict=True)
    ]
    return torch.cat(found, dim=1)


def _moved(rows: Tensor, moves: Tensor, mirrored: Tensor, size: Size) -> Tensor:
    """Return the boxes [B, M, ...] of one image of each view, moved; see `views.tiles`.

    Boxes of an image that a view shows nothing of are padding, also of one without a label.
    """
    step, down, right = moves.unbind()
    sides = rows.new_tensor([size[1], size[0]])
    offset = torch.stack([right, down], dim=1).to(rows.dtype) / ONE / sides
    scale = (step.to(rows.dtype) / ONE)[:, None, None]
    whole = ((rows[..., :4] - offset.repeat(1, 2)[:, None]) / scale).clamp(-64, 64)
    flipped = torch.stack(
        [1 - whole[..., 2], whole[..., 1], 1 - whole[..., 0], whole[..., 3]], dim=2
    )
    whole = torch.where(mirrored[:, None, None] == 1, flipped, whole)
    seen = whole.clamp(0, 1)
    share = _area(seen) / _area(whole).clamp(min=torch.finfo(rows.dtype).tiny)
    is_seen = ((-offset < scale[:, 0]) & (offset < 1)).all(dim=1)[:, None]
    code = torch.where(is_seen, rows[..., -1], PADDING)
    code = torch.where((code >= 0) & (share < LEAST_SHOWN), ignored(code), code)
    code = torch.where((code != PADDING) & (share <= 0), PADDING, code)
    seen = torch.where((code != PADDING)[..., None], seen, 0.0)
    return torch.cat([seen, rows[..., 4:-1], code[..., None]], dim=2)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(dim=-1)
