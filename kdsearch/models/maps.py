"""Feature maps in one form: [B, C, H, W], whatever a network calls its own."""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt

from torch import Tensor

from kdsearch.data.sizes import Size

TRANSFORMER_STAGES = 4


def evenly_spaced(total: int, count: int) -> tuple[int, ...]:
    """Return at most `count` evenly spaced indices into `total` items, the last one included."""
    count = min(total, count)
    return tuple(total * (i + 1) // count - 1 for i in range(count))


def height_axis(shape: Sequence[int], size: Size) -> int:
    """Return 2 for a map [B, C, H, W] in the proportions of `size`, 1 for [B, H, W, C], else 0."""
    if len(shape) != 4:
        return 0
    fits = (abs(shape[a] * size[1] - shape[a + 1] * size[0]) < max(size) for a in (2, 1))
    return next((axis for axis, is_fit in zip((2, 1), fits, strict=True) if is_fit), 0)


def grid_of(count: int, size: Size) -> tuple[int, int]:
    """Return the largest (rows, columns) in the proportions of `size` that so many tokens fill."""
    height, width = size
    if height == width:
        return isqrt(count), isqrt(count)
    grids = ((height // step, width // step) for step in range(1, min(size) + 1))
    return next(((rows, columns) for rows, columns in grids if rows * columns <= count), (0, 0))


def as_map(output: Tensor, size: Size) -> Tensor:
    """Return [B, C, H, W] from tokens [B, N, D], a channels-last map, or a map."""
    if output.ndim == 3:
        return tokens_to_map(output, grid_of(output.shape[1], size))
    return output.permute(0, 3, 1, 2) if height_axis(output.shape, size) == 1 else output


def tokens_to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Lay the last tokens of [B, N, D] on a grid of (rows, columns); the first are prefix."""
    batch, count, width = tokens.shape
    rows, columns = grid
    grid_tokens = tokens[:, count - rows * columns :]
    return grid_tokens.transpose(1, 2).reshape(batch, width, rows, columns)


def pooled(read: Tensor) -> Tensor:
    """Return [B, D] from an embedding, tokens [B, N, D] or a map [B, D, H, W]."""
    if read.ndim == 3:
        return read.mean(dim=1)
    return read.mean(dim=(2, 3)) if read.ndim == 4 else read
