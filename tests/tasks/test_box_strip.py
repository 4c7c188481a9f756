"""The picture of boxes shows truth and answers in the colours of the classes; misses are thick."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_iou

from kdsearch.tasks._box_strip import missed, strip

COLOURS = ((220, 40, 40), (40, 80, 220))
TOP = 22  # rows of titles
GAP = 4


def picture(answers: dict[str, list[np.ndarray]], labels: torch.Tensor) -> np.ndarray:
    images = torch.full((len(labels), 3, 144, 288), 255, dtype=torch.uint8)  # not scaled
    content = strip(images, labels, answers, ("square", "disc"), COLOURS)
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def cell(shown: np.ndarray, row: int, column: int) -> np.ndarray:
    top, left = TOP + row * (144 + GAP), column * (288 + GAP)
    return shown[top : top + 144, left : left + 288]


def outline(box: tuple[int, int, int, int], line: int) -> np.ndarray:
    """Return where an image of 144 x 288 shows a box."""
    x1, y1, x2, y2 = box
    found = np.zeros((144, 288), bool)
    found[y1:y2, x1:x2] = True
    found[y1 + line : y2 - line, x1 + line : x2 - line] = False
    return found


def test_boxes_have_the_colour_of_their_class_and_missed_ones_are_thick() -> None:
    one, other, ignored = (10, 20, 60, 90), (100, 30, 150, 60), (200, 5, 250, 50)
    near = (12, 22, 60, 90)
    labels = torch.tensor(
        [
            [[*one, 0], [*other, 1], [*ignored, -3]],
            [[0.0, 0, 0, 0, -1]] * 3,
        ]
    )
    none = np.zeros((0, 6), np.float32)
    answers = {
        "teacher": [np.array([[*one, 0.9, 0], [*other, 0.8, 1]], np.float32), none],
        "student": [np.array([[*near, 0.9, 0], [*other, 0.8, 0]], np.float32), none],
    }
    shown = picture(answers, labels)

    def has(column: int, colour: tuple[int, int, int]) -> np.ndarray:
        return (cell(shown, 0, column) == colour).all(axis=2)

    assert np.array_equal(has(0, COLOURS[0]), outline(one, 1))
    assert np.array_equal(has(0, COLOURS[1]), outline(other, 1))
    assert np.array_equal(has(0, (150, 150, 150)), outline(ignored, 1))
    assert np.array_equal(has(1, COLOURS[0]), outline(one, 1))
    assert np.array_equal(has(1, COLOURS[1]), outline(other, 1))
    assert np.array_equal(has(2, COLOURS[0]), outline(near, 1))  # the thick box covers the other
    assert np.array_equal(has(2, COLOURS[1]), outline(other, 4))
    for column in range(3):
        assert (cell(shown, 1, column) == 255).all()


def test_a_box_is_missed_without_one_of_its_class_that_overlaps_by_half() -> None:
    generator = np.random.default_rng(0)
    boxes = []
    for count in (60, 90):
        corners = generator.uniform(0, 60, (count, 2))
        sides = generator.uniform(10, 60, (count, 2))
        labels = generator.integers(0, 2, (count, 1))
        boxes.append(np.concatenate([corners, corners + sides, labels], axis=1))
    true, found = boxes
    overlap = box_iou(*(torch.from_numpy(each[:, :4]) for each in boxes)).numpy()
    overlap[true[:, None, 4] != found[None, :, 4]] = 0
    expected = overlap.max(axis=1) < 0.5
    assert np.array_equal(missed(true, found), expected)
    assert 0 < expected.sum() < 60
    assert missed(true, found[:0]).all()
    assert missed(true[:0], found).shape == (0,)
