"""The picture of masks: cells, colours of classes, colours of errors."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_masks
from PIL import Image

import kdsearch.data as datasets
from kdsearch import tasks
from kdsearch.data.base import VOID
from kdsearch.errors import DataError
from kdsearch.tasks._strip import _OF_ALL, _OF_STUDENT, _OF_TEACHER, cell_size, errors
from kdsearch.tasks.segmentation import Segmentation


def opened(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def test_errors_are_coloured_by_whose_they_are_and_void_is_none() -> None:
    image = np.full((1, 5, 3), 100, np.uint8)
    truth = np.array([[0, 1, 2, 1, VOID]], np.uint8)
    given = {
        "teacher": np.array([[0, 0, 2, 0, 0]]),
        "student": np.array([[0, 1, 0, 0, 0]]),
    }
    found = errors(image, truth, given)[0]
    assert found[0].tolist() == found[4].tolist() == [195] * 3
    assert [tuple(each) for each in found[1:4]] == [_OF_TEACHER, _OF_STUDENT, _OF_ALL]


def test_a_cell_keeps_the_shape_of_an_image() -> None:
    assert cell_size(48, 64) == (108, 144)
    assert cell_size(1024, 512) == (144, 72)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_strip_shows_truth_and_answers_in_the_colours_of_the_classes(channels: int) -> None:
    task = Segmentation(["a", "b"])
    task.colours = ((10, 200, 30), (250, 160, 0))
    images = torch.full((2, channels, 36, 36), 90, dtype=torch.uint8)
    labels = torch.zeros(2, 36, 36, dtype=torch.uint8)
    labels[1] = 1
    always_b = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(2, 2, 9, 9)
    found = opened(
        task.picture(
            images, labels, {"teacher": lambda _: -always_b, "student": lambda _: always_b}
        )
    )
    middles = [(22 + 72, 72 + 148 * column) for column in range(5)]
    first = [tuple(found[y, x].tolist()) for y, x in middles]
    second = [tuple(found[y + 148, x].tolist()) for y, x in middles]
    a, b = task.colours
    assert first[1:] == [a, a, b, _OF_STUDENT]
    assert second[1:] == [b, a, b, _OF_TEACHER]
    assert first[0] == (90, 90, 90)


def test_colours_of_the_user_reach_task_and_file_and_others_get_their_own(tmp_path: Path) -> None:
    folder = toy_masks.write(tmp_path / "toys")
    data = datasets.load(str(folder), cache_dir=tmp_path / "cache")
    assert data.colours == toy_masks.COLOURS
    stated = json.loads(tasks.of(data).metadata()["colours"])
    assert [tuple(colour) for colour in stated] == list(toy_masks.COLOURS)
    own = json.loads(Segmentation("abc").metadata()["colours"])
    assert len({tuple(colour) for colour in own}) == 3


def test_masks_in_colours_are_those_of_the_ids_and_equal_colours_are_refused(
    tmp_path: Path,
) -> None:
    by_id = datasets.load(str(toy_masks.write(tmp_path / "ids")), cache_dir=tmp_path / "cache")
    folder = toy_masks.write(tmp_path / "colours")
    table = np.zeros((256, 3), np.uint8)
    table[:3], table[toy_masks.VOID_ID] = toy_masks.COLOURS, (1, 2, 3)
    for mask in (folder / "masks").rglob("*.png"):
        with Image.open(mask) as image:
            ids = np.asarray(image)
        Image.fromarray(table[ids]).save(mask)
    file = folder / "classes.json"
    content = json.loads(file.read_text())
    content["ignore"] = {"id": toy_masks.VOID_ID, "name": "void", "colour": [1, 2, 3]}
    file.write_text(json.dumps(content))
    by_colour = datasets.load(str(folder), cache_dir=tmp_path / "cache")
    assert torch.equal(by_id.train.labels, by_colour.train.labels)
    content["classes"][1]["colour"] = content["classes"][0]["colour"]
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match="ground and box have one colour"):
        datasets.load(str(folder), cache_dir=tmp_path / "cache")
