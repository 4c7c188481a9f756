"""The picture of a classifier: images that teacher and student answer differently."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor

from kdsearch.tasks import _thumbnails
from kdsearch.tasks.classification import Classification

CLASSES = ("cat", "dog", "a class whose name is far too long for one cell")
PAGE = 300_000 * 3 // 4  # bytes of an image that takes 300 kB in base64


def answering(labels: Tensor) -> object:
    """Return a function that answers images by the class that their first pixel states."""
    return lambda images: torch.nn.functional.one_hot(labels[images[:, 0, 0, 0].long()], 3).float()


def numbered(count: int, side: int = 16) -> Tensor:
    """Return noise images whose first pixel is their number."""
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(count)
    return images


def test_the_picture_shows_what_the_networks_disagree_on(monkeypatch: object) -> None:
    seen: dict[str, object] = {}

    def sheet(
        title: str, images: Tensor, labels: list[str], answers: dict[str, list[str]]
    ) -> bytes:
        seen.update(title=title, numbers=images[:, 0, 0, 0].tolist(), labels=labels, **answers)
        return b"png"

    monkeypatch.setattr(_thumbnails, "sheet", sheet)  # type: ignore[attr-defined]
    labels = torch.zeros(100, dtype=torch.int64)
    teacher, student = labels.clone(), labels.clone()
    teacher[10:12] = 1  # the student is right
    student[50:90] = 1  # the teacher is right
    teacher[95], student[95] = 1, 2  # both are wrong
    teacher[0] = student[0] = 1  # both are wrong alike: no disagreement
    answers = {"teacher": answering(teacher), "student": answering(student)}
    assert Classification(CLASSES).picture(numbered(100), labels, answers) == b"png"
    numbers = seen["numbers"]
    assert len(numbers) == len(set(numbers)) == 24
    assert all((teacher != student)[i] for i in numbers)
    assert {95} <= set(numbers)
    assert "43 of 100" in seen["title"]
    assert seen["labels"] == ["cat"] * 24
    assert seen["teacher"] == [CLASSES[teacher[i]] for i in numbers]
    assert seen["student"] == [CLASSES[student[i]] for i in numbers]


def test_networks_that_agree_have_no_picture() -> None:
    labels = torch.zeros(5, dtype=torch.int64)
    answers = {"teacher": answering(labels), "student": answering(labels)}
    assert Classification(CLASSES).picture(numbered(5), labels, answers) == b""


def test_a_sheet_of_noise_fits_into_a_page() -> None:
    """Noise compresses worst."""
    names = [CLASSES[2]] * 24
    answers = {"teacher": names, "student": names}
    png = _thumbnails.sheet("title", numbered(24, side=300), names, answers)
    with Image.open(io.BytesIO(png)) as picture:
        assert picture.width < 800
    assert len(png) < PAGE
