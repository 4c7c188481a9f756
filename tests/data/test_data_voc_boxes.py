"""Boxes in the layout of Pascal VOC are read by their lists, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import detection_data
import numpy as np
import pytest
from PIL import Image

import kdsearch.data as datasets
from kdsearch.data.base import SEGMENTATION, ImageData
from kdsearch.errors import DataError, SpecError

SMALL = {"train": 3, "val": 2, "test": 2}


def load(root: Path, task: str | None = None) -> ImageData:
    return datasets.load(str(root), cache_dir=root.parent / "cache", task=task)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return detection_data.write(tmp_path / "shapes", "voc", splits=SMALL)


def test_lists_images_and_annotations(root: Path) -> None:
    data = load(root)
    detection_data.check(data, SMALL)
    assert data.classes == ("disc", "ring", "square")
    assert data.inventory[0] == "Data shapes: 3 classes; train 3, val 2, test 2"


def test_difficult_objects_are_ignored(root: Path) -> None:
    file = root / "Annotations" / "train_00.xml"
    file.write_text(file.read_text().replace("<difficult>0", "<difficult>1"))
    boxes = detection_data.scenes(SMALL)["train"][0][1]
    codes = [-2 - ("disc", "ring", "square").index(detection_data.CLASSES[b[4]]) for b in boxes]
    assert load(root).train.labels[0, : len(boxes), 4].tolist() == codes


def test_trainval_is_train_without_what_other_lists_name(root: Path) -> None:
    lists = root / "ImageSets" / "Main"
    both = (lists / "train.txt").read_text() + (lists / "val.txt").read_text()
    (lists / "train.txt").unlink()
    (lists / "trainval.txt").write_text(both)
    detection_data.check(load(root), SMALL)


def test_without_lists_all_annotated_images_are_train(tmp_path: Path) -> None:
    root = detection_data.write(tmp_path / "shapes", "voc", splits={"train": 20})
    (root / "ImageSets" / "Main" / "train.txt").unlink()
    data = load(root)
    assert [len(part) for part in (data.train, data.val, data.test)] == [16, 2, 2]


def test_a_test_list_without_annotations_is_left_out(root: Path) -> None:
    (root / "Annotations" / "test_00.xml").unlink()
    assert any(
        line.startswith("Left out: 2 test images, since 1 have no annotation")
        for line in load(root).inventory
    )


def test_boxes_of_an_image_without_a_stated_size_are_clipped_to_it(root: Path) -> None:
    file = root / "Annotations" / "val_00.xml"
    text = file.read_text().replace("<width>128</width>", "<width>0</width>")
    file.write_text(
        text.replace("</annotation>", OBJECT.format("ring", 100, 50, 200, 60) + "</annotation>")
    )
    data = load(root)
    labels = detection_data.in_pixels(data.val.labels[0].numpy(), data.size)
    assert any(np.array_equal(row, (99, 49, 128, 60, 1)) for row in labels)


OBJECT = (
    "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
    "</bndbox></object>"
)
ENTITIES = '<!DOCTYPE a [<!ENTITY x "xxxx"><!ENTITY y "&x;&x;">]>'


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("<annotation>", f"{ENTITIES}<annotation>", ": a document type is not supported"),
        ("</annotation>", "", "no element found"),
        ("<xmin>", "<xmin>a", r": object 1: bndbox/xmin is 'a\d+', not a number"),
        ("bndbox>", "box>", ": object 1: bndbox/xmin is '', not a number"),
        ("name>", "label>", ": object 1 has no name"),
        ("<width>", "<width>-", ": size/width is -128, not a number of pixels"),
        ("<width>128", "<width>nan", ": size/width is nan, not a number of pixels"),
        ("<xmin>", "<xmin>9", r": object 1 \(\w+\): the box .* ends before it begins"),
    ],
)
def test_a_damaged_annotation_is_named(root: Path, before: str, after: str, said: str) -> None:
    file = root / "Annotations" / "train_01.xml"
    file.write_text(file.read_text().replace(before, after))
    with pytest.raises(DataError, match=rf"shapes/Annotations/train_01\.xml.*{said}"):
        load(root)


def test_another_size_than_the_image_has_is_named(root: Path) -> None:
    file = root / "Annotations" / "train_01.xml"
    file.write_text(file.read_text().replace("<width>128", "<width>256"))
    with pytest.raises(DataError, match=r"train_01\.png: it has 128 x 96 pixels .* 256 x 96"):
        load(root)


@pytest.mark.parametrize("folder", ["JPEGImages", "Annotations"])
def test_a_name_without_a_file_is_named(root: Path, folder: str) -> None:
    next((root / folder).glob("train_01.*")).unlink()
    with pytest.raises(DataError, match=rf"train\.txt: 1 of 3 names have no file in {folder}: "):
        load(root)


def with_masks(root: Path) -> Path:
    """Add a mask to each image, as the data of VOC have."""
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir()
    (root / "SegmentationClass").mkdir()
    for split in ("train", "val"):
        names = (root / "ImageSets" / "Main" / f"{split}.txt").read_text()
        (lists / f"{split}.txt").write_text(names)
        for name in names.split():
            ids = np.zeros((96, 128), np.uint8)
            Image.fromarray(ids).save(root / "SegmentationClass" / f"{name}.png")
    return root


def test_a_folder_with_masks_and_boxes_needs_a_task(tmp_path: Path) -> None:
    root = with_masks(
        detection_data.write(tmp_path / "shapes", "voc", splits={**SMALL, "train": 9})
    )
    said = r"has labels for segmentation and detection; choose --task segmentation or --task detec"
    with pytest.raises(DataError, match=said):
        load(root)
    detection_data.check(load(root, "detection"), {**SMALL, "train": 9})
    assert load(root, "segmentation").task == SEGMENTATION


@pytest.mark.parametrize("task", ["classification", "segmentation", "detections"])
def test_a_task_that_the_labels_are_not_for_is_refused(root: Path, task: str) -> None:
    with pytest.raises((SpecError, DataError), match=f"--task {task}"):
        load(root, task)
