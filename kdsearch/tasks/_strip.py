"""A picture of masks: one row an image, with truth, answers and their errors; below, the colours.

An error has the colour of the network that makes it: student, teacher or both.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kdsearch.data.base import VOID, Colour

_SIDE = 144  # pixels of the longer side of a cell
_GAP, _LINE, _SQUARE = 4, 18, 12
LEGEND = 24  # classes in the legend at most
_PAPER, _INK = (255, 255, 255), (40, 40, 40)
_OF_STUDENT, _OF_TEACHER, _OF_ALL = (214, 39, 40), (31, 119, 180), (148, 103, 189)


def strip(
    images: Tensor,
    labels: Tensor,
    answers: Mapping[str, Tensor],
    classes: Sequence[str],
    colours: Sequence[Colour],
) -> bytes:
    """Return a PNG. images: uint8 [B, C, H, W]; labels, answers: classes [B, H, W]."""
    void = (0, 0, 0) if (0, 0, 0) not in colours else _PAPER
    palette = np.full((VOID + 1, 3), void, np.uint8)
    palette[: len(classes)] = np.array(colours, np.uint8)
    titles = ("image", "truth", *answers, "errors")
    height, width = cell_size(labels.shape[1], labels.shape[2])
    squares = [
        ("student wrong", _OF_STUDENT),
        *([("teacher wrong", _OF_TEACHER), ("both wrong", _OF_ALL)] if len(answers) > 1 else []),
        ("void", void),
        *zip(classes[:LEGEND], colours, strict=False),
    ]
    rows = []
    for row, (image, truth) in enumerate(zip(images, labels, strict=True)):
        given = {name: answer[row].cpu().numpy() for name, answer in answers.items()}
        shown, known = rgb(image), truth.cpu().numpy()
        cells = [palette[known], *(palette[found] for found in given.values())]
        cells.append(errors(shown, known, given))
        kind = Image.Resampling.NEAREST
        small = [Image.fromarray(cell).resize((width, height), kind) for cell in cells]
        first = Image.fromarray(shown).resize((width, height), Image.Resampling.BILINEAR)
        rows.append([first, *small])
    return sheet(titles, rows, squares)


def sheet(
    titles: Sequence[str],
    rows: Sequence[Sequence[Image.Image]],
    squares: Sequence[tuple[str, Colour]],
) -> bytes:
    """Return a PNG: a title above each column of equal cells, and a legend below."""
    width, height = rows[0][0].size
    top, across = _LINE + _GAP, width + _GAP
    whole = len(titles) * across
    places, lines = _placed([name for name, _ in squares], whole)
    bottom = top + len(rows) * (height + _GAP)
    paper = Image.new("RGB", (whole, bottom + lines * _LINE + _GAP), _PAPER)
    draw, font = ImageDraw.Draw(paper), ImageFont.load_default(size=12)
    for column, title in enumerate(titles):
        draw.text((column * across + 1, 2), title, fill=_INK, font=font)
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            paper.paste(cell, (column * across, top + row * (height + _GAP)))
    for (name, colour), (x, line) in zip(squares, places, strict=True):
        y = bottom + line * _LINE + 2
        draw.rectangle((x, y, x + _SQUARE, y + _SQUARE), fill=colour, outline=_INK)
        draw.text((x + _SQUARE + 4, y - 1), name, fill=_INK, font=font)
    file = io.BytesIO()
    paper.save(file, "PNG", optimize=True)
    return file.getvalue()


def errors(
    image: NDArray[np.uint8], truth: NDArray[np.uint8], answers: Mapping[str, NDArray[np.int64]]
) -> NDArray[np.uint8]:
    """Return an image [H, W, 3] in pale grey, coloured where an answer is wrong."""
    found = np.repeat(160 + image.mean(axis=2, keepdims=True) * 0.35, 3, axis=2).astype(np.uint8)
    is_wrong = {name: (answer != truth) & (truth != VOID) for name, answer in answers.items()}
    for name, colour in (("teacher", _OF_TEACHER), ("student", _OF_STUDENT)):
        if name in is_wrong:
            found[is_wrong[name]] = colour
    if len(is_wrong) > 1:
        found[np.logical_and.reduce(list(is_wrong.values()))] = _OF_ALL
    return found


def cell_size(height: int, width: int, side: int = _SIDE) -> tuple[int, int]:
    """Return (H, W) of a cell whose longer side has so many pixels."""
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def rgb(image: Tensor) -> NDArray[np.uint8]:
    """Return an image [C, H, W] of 1 or 3 channels as [H, W, 3]."""
    pixels: NDArray[np.uint8] = image.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
    return pixels


def _placed(names: Sequence[str], width: int) -> tuple[list[tuple[int, int]], int]:
    """Return (x, line) of each name of a legend, and the number of lines."""
    font = ImageFont.load_default(size=12)
    x, line, places = 0, 0, []
    for name in names:
        wide = _SQUARE + 4 + round(font.getlength(name)) + 12
        if x and x + wide > width:
            x, line = 0, line + 1
        places.append((x, line))
        x += wide
    return places, line + 1
