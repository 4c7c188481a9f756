"""Boxes are placed as their image is, and the rules for boxes hold for every reader."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
from detection_data import in_pixels
from PIL import ExifTags, Image

from kdsearch.data.boxes import Boxes, Checks, ignored, padding
from kdsearch.data.pixels import UnreadableError, decode
from kdsearch.errors import DataError

MARK = (11, 4, 21, 9)  # the box of a white mark in an image of 40 x 24


def marked(turn: int = 1, box: tuple[int, int, int, int] = MARK) -> bytes:
    """Return an image of 40 x 24 stored pixels with a white mark, and an EXIF orientation."""
    pixels = np.zeros((24, 40), np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 255
    file, exif = io.BytesIO(), Image.Exif()
    exif[ExifTags.Base.Orientation] = turn
    Image.fromarray(pixels).save(file, "PNG", exif=exif)
    return file.getvalue()


def seen(content: bytes, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the box of what is white in the decoded image."""
    pixels, _ = decode(content, size=size, channels=1, fit="pad", max_megapixels=1)
    rows, columns = np.nonzero(pixels[0] > 127)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("size", [(96, 96), (64, 160), (24, 40)])
def test_boxes_lie_where_the_decoded_image_shows_the_object(
    turn: int, size: tuple[int, int]
) -> None:
    content = marked(turn)
    boxes = Boxes([(*MARK, 2)], 3, (24, 40))
    if turn in (2, 3, 4):  # equal sizes: the boxes are taken to be those of the upright image
        whole = seen(content, (24, 40))
        boxes = Boxes([(*whole, 2)], 3, (24, 40))
    label = boxes.decode(content, size)
    assert label.shape == (3, 5)
    assert label.dtype == np.float32
    assert np.abs(in_pixels(label, size)[0, :4] - seen(content, size)).max() <= 1
    assert label[0, 4] == 2
    assert np.array_equal(label[1:], padding(2))


@pytest.mark.parametrize("stated", [None, (40, 24)])
def test_boxes_of_the_upright_image_are_not_turned(stated: tuple[int, int] | None) -> None:
    content = marked(6)
    upright = seen(content, (40, 24))
    label = Boxes([(*upright, 0)], 1, stated).decode(content, (80, 48))
    assert np.array_equal(in_pixels(label, (80, 48))[0, :4], 2.0 * np.array(upright))


def test_boxes_are_scaled_and_moved_as_padding_does() -> None:
    # 40 x 24 on a canvas of 100 (H) x 80 (W) is twice as large, 80 x 48, and begins in row 26.
    label = Boxes([(1, 2, 11, 12, 0), (-5, 3, 45, 7, ignored(1))], 2).decode(marked(), (100, 80))
    assert np.array_equal(in_pixels(label, (100, 80)), [[2, 30, 22, 50, 0], [0, 32, 80, 40, -3]])


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        (Boxes([], 1, (24, 41)), "it has 40 x 24 pixels .* states 41 x 24"),
        (Boxes([], 1, (40, 24)), "it has 40 x 24 pixels .* states 24 x 40"),
        (Boxes([(1, 1, 2, 2, 0), (50, 1, 60, 9, 0)], 2), r"box 1 \(50, 1, 60, 9\) lies outside"),
    ],
)
def test_boxes_of_another_image_make_it_unreadable(boxes: Boxes, said: str) -> None:
    with pytest.raises(UnreadableError, match=said):
        boxes.decode(marked(), (32, 32))


def test_an_image_without_boxes_is_padding() -> None:
    assert np.array_equal(Boxes([], 2).decode(marked(), (32, 32)), [[0, 0, 0, 0, -1]] * 2)


@pytest.mark.parametrize(
    ("box", "kept", "reason"),
    [
        ((1, 2, 3, 4), (1, 2, 3, 4), ""),
        ((-3, 2, 3, 4), (0, 2, 3, 4), ""),
        ((1, -0.4, 45, 30), (1, 0, 40, 24), ""),
        ((1, 2, 1.9, 9), None, "narrower or lower than 1 pixel"),
        ((1, 2, 9, 2), None, "narrower or lower than 1 pixel"),
        ((1, math.nan, 9, 4), None, "not finite"),
        ((1, 2, math.inf, 4), None, "not finite"),
        ((40, 2, 50, 4), None, "outside of their image"),
        ((-9, 2, 0.5, 4), None, "outside of their image"),
    ],
)
def test_boxes_are_clipped_or_left_out_and_counted(
    box: tuple[float, float, float, float],
    kept: tuple[float, float, float, float] | None,
    reason: str,
) -> None:
    checks = Checks(Path("data"))
    assert checks.kept("a.json: annotation 7", box, (24, 40)) == kept
    assert [[*names] for names in checks.left_out.values()] == [["a.json: annotation 7"]] * (
        kept is None
    )
    assert all(reason in key for key in checks.left_out)
    assert bool(checks.notes) == (kept not in (None, box))


@pytest.mark.parametrize("box", [(5, 2, 3, 4), (5, 4, 9, 2)])
def test_a_box_that_ends_before_it_begins_is_an_error(
    box: tuple[float, float, float, float],
) -> None:
    with pytest.raises(DataError, match=r"data/a.json: annotation 7: the box \(5, "):
        Checks(Path("data")).kept("a.json: annotation 7", box, None)
