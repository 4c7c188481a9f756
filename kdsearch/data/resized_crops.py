"""Random resized crops (Szegedy et al., CVPR 2015, arXiv:1409.4842), in whole numbers."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def shown(images: Tensor, index: Tensor, place: Tensor, least: float, *, flip: bool) -> Tensor:
    """Return boxes of the images at their whole size: bilinear, in whole numbers.

    The area of a box is uniform in [least, 1], the log of its ratio in [-log 4/3, log 4/3].
    place: int64 [B], whose bits decide.
    """
    height, width = images.shape[2:]
    area = least + (1 - least) * (place & 0xFFFF).double() / 0x10000
    ratio = torch.exp2(((place >> 16 & 0xFFFF).double() / 0x8000 - 1) * math.log2(4 / 3))
    sides = (area / ratio).sqrt() * height, (area * ratio).sqrt() * width
    down = _along(height, sides[0].round().long(), place >> 32 & 0x3FFF)
    mirrored = ((place >> 60 & 1) * flip)[:, None] == 1
    across = _along(width, sides[1].round().long(), place >> 46 & 0x3FFF)
    right = [torch.where(mirrored, x.flip(1), x) for x in across]
    channels = torch.arange(images.shape[1], device=images.device)
    plane = (index[:, None] * images.shape[1] + channels)[:, :, None] * height
    lines = images.reshape(-1, width)

    def rows(y: Tensor) -> Tensor:
        found = lines.index_select(0, (plane + y[:, None, :]).flatten())
        return found.view(*plane.shape[:2], height, width).short()

    tall = _between(rows(down[0]), rows(down[1]), down[2][:, None, :, None])
    columns = [x[:, None, None, :].expand(tall.shape) for x in right]
    return _between(tall.gather(3, columns[0]), tall.gather(3, columns[1]), columns[2]).byte()


def _along(length: int, side: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two source pixels of each pixel of a line, and the second one's weight of 128.

    side: of the boxes, int64 [B], cut at the line's length. place: where they begin, in 2^14ths.
    """
    side = side.clamp(1, length)[:, None]
    start = (length - side + 1) * place[:, None] >> 14
    centre = (2 * torch.arange(length, device=side.device) + 1) * side * 64 // length - 64
    centre = torch.minimum(centre.clamp(min=0), (side - 1) * 128)
    first = centre >> 7
    return start + first, start + torch.minimum(first + 1, side - 1), (centre & 127).short()


def _between(one: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    """Return the rounded mix of two int16 tensors of bytes. weight: of the other, of 128."""
    return one + ((other - one) * weight + 64 >> 7)
