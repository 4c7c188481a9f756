"""Enlarge or reduce images at random places, in integers: every device gives the same bits.

A view's pixel shows the source at offset + step * (its centre). Steps and offsets are in pixels of
the source with 16 bits after the point.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from kdsearch.data.sizes import Size

ONE = 1 << 16  # one pixel
LEVELS = 65  # zooms between the smallest and the largest, an odd number: the middle one is 1
_BITS = 20  # of a random place


def drawn(bits: Tensor, more: Tensor, *, size: Size, scale: float, pad: int) -> Tensor:
    """Return (step, offset down, offset right), int64 [3, B], of random numbers int64 [B].

    The zoom is log-uniform from 1 / (1 + scale) to 1 + scale. The view lies anywhere in an
    enlarged image, or shows all of a reduced one anywhere in it; both up to `pad` pixels further.
    bits, more: from 0 to 2**63.
    """
    step = _steps(scale, bits.device).index_select(0, bits % LEVELS)
    places = more & ((1 << _BITS) - 1), (more >> _BITS) & ((1 << _BITS) - 1)
    offsets = []
    for side, place in zip(size, places, strict=True):
        free = side * (ONE - step)
        low = free.clamp(max=0) - pad * ONE
        high = free.clamp(min=0) + pad * ONE
        offsets.append(low + ((high - low) * place >> _BITS))
    return torch.stack([step, *offsets])


@lru_cache(maxsize=32)
def _steps(scale: float, device: torch.device) -> Tensor:
    """Return the steps of all zooms, int64 [LEVELS]."""
    ends = math.log(1 + scale)
    zooms = [math.exp(ends * (2 * level / (LEVELS - 1) - 1)) for level in range(LEVELS)]
    return torch.tensor([round(ONE / zoom) for zoom in zooms], device=device)


def shown(
    images: Tensor, rows: Tensor, moves: Tensor, mirrored: Tensor, *, is_smooth: bool = True
) -> Tensor:
    """Return images uint8 [M, C, H, W] at `rows` [B], moved: bilinear, else nearest; 0 outside.

    It takes rows, then columns of these: there is no rotation.
    """
    channels, height, width = images.shape[1:]
    step, down, right = moves.unbind()
    y = _positions(height, step, down)
    x = _positions(width, step, right)
    x = torch.where(mirrored[:, None] == 1, x.flip(1), x)
    plane = rows[:, None] * channels + torch.arange(channels, device=images.device)
    lines = images.reshape(-1, width)

    def line(at: Tensor) -> Tensor:
        index = plane[:, :, None] * height + at.clamp(0, height - 1)[:, None]
        return lines.index_select(0, index.flatten()).view(len(rows), channels, height, width)

    def column(found: Tensor, at: Tensor) -> Tensor:
        index = at.clamp(0, width - 1)[:, None, None].expand(found.shape)
        return found.gather(3, index)

    half = ONE // 2
    inside = ((y >= -half) & (y < height * ONE - half))[:, :, None]
    inside = inside & ((x >= -half) & (x < width * ONE - half))[:, None]
    if not is_smooth:
        return column(line(y + half >> 16), x + half >> 16).mul_(inside[:, None])
    first, second = (line((y >> 16) + i).int() for i in (0, 1))
    share = (y & 0xFFFF).int()[:, None, :, None] >> 8
    tall = first.mul_(256 - share).add_(second.mul_(share))
    share = (x & 0xFFFF).int()[:, None, None] >> 8
    wide = column(tall, x >> 16).mul_(256 - share).add_(column(tall, (x >> 16) + 1).mul_(share))
    return wide.add_(1 << 15).bitwise_right_shift_(16).byte().mul_(inside[:, None])


def _positions(length: int, step: Tensor, offset: Tensor) -> Tensor:
    """Return the positions [B, length] in the source; those of its pixels' centres are whole."""
    centres = 2 * torch.arange(length, device=step.device) + 1
    return offset[:, None] + (step[:, None] * centres >> 1) - ONE // 2
