"""Four images in one view (Bochkovskiy et al., 2020, arXiv:2004.10934), in integers.

They lie two by two, in their own size, and the view is a window on them: at most all four, reduced
to half their size. It never shows what is outside of them.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from kdsearch.data import zoom
from kdsearch.data.base import MOSAIC_OTHERS
from kdsearch.data.sizes import Size
from kdsearch.data.zoom import ONE

_LEVELS = 65
_BITS = 20  # of a random place
_SHARE_BITS = 16
_HIDDEN = 8  # widths and heights away, where no view shows an image


def drawn(
    own: Tensor, bits: Tensor, more: Tensor, *, size: Size, scale: float, share: float
) -> Tensor:
    """Return (step, offset down, offset right), int64 [4, 3, B], of the four images of each view.

    own: [3, B], of the view without a mosaic, see `zoom.drawn`: the others then lie far outside.
    A share of the views are mosaics. Their images are reduced to half at most, and enlarged to
    1 + scale, log-uniform. bits, more: random numbers from 0 to 2**63.
    """
    is_mosaic = (bits >> 40 & ((1 << _SHARE_BITS) - 1)) < round(share * (1 << _SHARE_BITS))
    step = _steps(scale, bits.device).index_select(0, bits % _LEVELS)
    places = more & ((1 << _BITS) - 1), (more >> _BITS) & ((1 << _BITS) - 1)
    window = [
        side * (2 * ONE - step) * place >> _BITS for side, place in zip(size, places, strict=True)
    ]
    turn = bits >> 20 & 3
    found = []
    for number in range(1 + MOSAIC_OTHERS):
        cell = (turn + number) & 3
        cells = cell >> 1, cell & 1
        ours = [
            corner - side * ONE * place
            for corner, side, place in zip(window, size, cells, strict=True)
        ]
        away = [torch.full_like(step, side * ONE * _HIDDEN) for side in size]
        plain = own if number == 0 else torch.stack([torch.full_like(step, ONE), *away])
        found.append(torch.where(is_mosaic, torch.stack([step, *ours]), plain))
    return torch.stack(found)


@lru_cache(maxsize=32)
def _steps(scale: float, device: torch.device) -> Tensor:
    """Return the steps of all sizes, int64 [_LEVELS]."""
    low, high = -math.log(1 + scale), math.log(2)
    ends = (low + (high - low) * level / (_LEVELS - 1) for level in range(_LEVELS))
    return torch.tensor([round(ONE * math.exp(end)) for end in ends], device=device)


def shown(images: Tensor, rows: Tensor, moves: Tensor, mirrored: Tensor) -> Tensor:
    """Return the views, uint8 [B, C, H, W], of images uint8 [M, C, H, W].

    rows: [4, B], the places of the four images of each. moves: see `drawn`. mirrored: [B], of the
    whole view.
    """
    parts = [
        zoom.shown(images, own, moved, mirrored) for own, moved in zip(rows, moves, strict=True)
    ]
    whole = parts[0]
    for part in parts[1:]:  # no two show anything at one pixel
        whole = whole.bitwise_or_(part)
    return whole
