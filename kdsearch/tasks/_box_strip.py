"""A picture of boxes: one row an image, with the true boxes, then with those of each network.

A box has the colour of its class. In the cell of a network, the true boxes that it misses are
thick: none of its boxes of that class overlaps them by an IoU of 0.5. Ignored boxes are grey.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from kdsearch.data.base import Colour
from kdsearch.tasks._strip import LEGEND, cell_size, rgb, sheet

_SIDE = 288  # pixels of the longer side of a cell
_THIN, _THICK = 1, 4  # pixels of a line
_IGNORED: Colour = (150, 150, 150)
MATCH = 0.5  # IoU from which on a box is found
Floats: TypeAlias = NDArray[np.floating]


def strip(
    images: Tensor,
    labels: Tensor,
    answers: Mapping[str, Sequence[Floats]],
    classes: Sequence[str],
    colours: Sequence[Colour],
) -> bytes:
    """Return a PNG. images: uint8 [B, C, H, W]. labels: [B, M, 5], x1, y1, x2, y2, code.

    answers: for each network and image the boxes to draw, [n, 6]: x1, y1, x2, y2, score, class.
    """
    height, width = images.shape[2:]
    small = cell_size(height, width, _SIDE)
    rows = []
    for row, (image, label) in enumerate(zip(images, labels.cpu().numpy(), strict=True)):
        shown = Image.fromarray(rgb(image)).resize(small[::-1], Image.Resampling.BILINEAR)
        true, grey = label[label[:, 4] >= 0], label[label[:, 4] < -1]
        first = shown.copy()
        _draw(first, true, width, colours)
        _draw(first, grey, width, [_IGNORED], is_plain=True)
        cells = [first]
        for found in (given[row] for given in answers.values()):
            cell = shown.copy()
            boxes = found[:, [0, 1, 2, 3, 5]]
            _draw(cell, boxes, width, colours)
            _draw(cell, true[missed(true, boxes)], width, colours, line=_THICK)
            cells.append(cell)
        rows.append(cells)
    squares = [*zip(classes[:LEGEND], colours, strict=False), ("thick: missed", _IGNORED)]
    return sheet(("truth", *answers), rows, squares)


def missed(true: Floats, found: Floats) -> NDArray[np.bool_]:
    """Return which true boxes have no match, [n]. true [n, 5], found [m, 5]: corners, class."""
    low = np.maximum(true[:, None, :2], found[None, :, :2])
    high = np.minimum(true[:, None, 2:4], found[None, :, 2:4])
    both = (high - low).clip(0).prod(axis=2)
    areas = [(boxes[:, 2:4] - boxes[:, :2]).clip(0).prod(axis=1) for boxes in (true, found)]
    union = areas[0][:, None] + areas[1] - both
    is_match = (both >= MATCH * union) & (true[:, None, 4] == found[None, :, 4])
    return ~np.asarray(is_match.any(axis=1), bool)


def _draw(
    cell: Image.Image,
    boxes: Floats,
    width: int,
    colours: Sequence[Colour],
    *,
    line: int = _THIN,
    is_plain: bool = False,
) -> None:
    """Draw boxes [n, 5] of an image of a width; is_plain: in the first colour, whatever class."""
    draw, scale = ImageDraw.Draw(cell), cell.width / width
    for *corners, code in boxes.tolist():
        colour = colours[0 if is_plain else int(code)]
        x1, y1, x2, y2 = (round(scale * side) for side in corners)
        draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=line)
