"""A sheet of images on which teacher and student name different classes, each with its label.

A PNG of 256 colours: the page of a report holds it, in 300 kB.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from kdsearch.tasks._strip import cell_size, rgb

MOST = 24  # images
_COLUMNS, _SIDE, _WIDTH, _LINE, _GAP = 6, 88, 118, 14, 8
_PAPER, _INK, _RIGHT, _WRONG = (255, 255, 255), (40, 40, 40), (11, 122, 89), (179, 41, 0)


def sheet(
    title: str,
    images: Tensor,
    labels: Sequence[str],
    answers: Mapping[str, Sequence[str]],
) -> bytes:
    """Return a PNG. images: uint8 [B, C, H, W]. labels, answers: of each image, class names."""
    height, width = cell_size(images.shape[2], images.shape[3], _SIDE)
    kind = Image.Resampling.BILINEAR if images.shape[2] > _SIDE else Image.Resampling.NEAREST
    lines = 1 + len(answers)
    down = height + lines * _LINE + _GAP
    rows = -(-len(images) // _COLUMNS)
    font = ImageFont.load_default(size=11)
    across = max(min(_COLUMNS, len(images)) * _WIDTH, round(font.getlength(title)) + 2 * _GAP)
    paper = Image.new("RGB", (across, 2 * _LINE + rows * down), _PAPER)
    draw = ImageDraw.Draw(paper)
    draw.text((1, 2), title, fill=_INK, font=font)
    for place, image in enumerate(images):
        x, y = place % _COLUMNS * _WIDTH, 2 * _LINE + place // _COLUMNS * down
        paper.paste(Image.fromarray(rgb(image)).resize((width, height), kind), (x, y))
        truth = labels[place]
        texts = [(f"label {truth}", _INK)]
        for name, given in answers.items():
            texts.append((f"{name} {given[place]}", _RIGHT if given[place] == truth else _WRONG))
        for line, (text, colour) in enumerate(texts):
            shown = _clipped(text, font)
            draw.text((x, y + height + line * _LINE), shown, fill=colour, font=font)
    file = io.BytesIO()
    paper.quantize(256, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return file.getvalue()


def _clipped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return a text that is no wider than a cell."""
    if font.getlength(text) <= _WIDTH - 4:
        return text
    while font.getlength(f"{text}\u2026") > _WIDTH - 4:
        text = text[:-1]
    return f"{text}\u2026"
