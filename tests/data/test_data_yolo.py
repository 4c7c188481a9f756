"""YOLO's text files are read in their nestings, and what is wrong with them is named."""

from __future__ import annotations

from pathlib import Path

import detection_data
import numpy as np
import pytest

import kdsearch.data as datasets
from kdsearch.data.base import ImageData, is_labelled
from kdsearch.errors import DataError

SMALL = {"train": 3, "val": 2, "test": 2}


def load(root: Path) -> ImageData:
    return datasets.load(str(root), cache_dir=root.parent / "cache")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return detection_data.write(tmp_path / "shapes", "yolo", splits=SMALL)


def test_images_and_labels_by_split(root: Path) -> None:
    data = load(root)
    detection_data.check(data, SMALL)
    assert data.inventory[0] == "Data shapes: 3 classes; train 3, val 2, test 2"
    assert data.classes == detection_data.CLASSES
    detection_data.check(load(root / "data.yaml"), SMALL)


def test_splits_that_hold_images_and_labels(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "export"
    for split, name in (("train", "train"), ("val", "valid"), ("test", "test")):
        for part in ("images", "labels"):
            (target / name).mkdir(parents=True, exist_ok=True)
            (root / part / split).rename(target / name / part)
    (target / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
        "nc: 3\nnames:\n  0: square\n  1: disc\n  2: ring\n"
    )
    detection_data.check(load(target), SMALL)


def test_splits_that_list_their_images(root: Path) -> None:
    for split in SMALL:
        names = sorted(
            f"./images/{split}/{file.name}" for file in (root / "images" / split).iterdir()
        )
        (root / f"{split}.txt").write_text("\n".join(names) + "\n")
    config = root / "data.yaml"
    config.write_text(config.read_text().replace("images/", "").replace("path: .", "path: /absent"))
    config.write_text("".join(f"{s}: {s}.txt\n" for s in SMALL) + "names: [square, disc, ring]\n")
    detection_data.check(load(root), SMALL)


def test_polygons_become_their_bounding_boxes(root: Path) -> None:
    x1, y1, x2, y2, label = detection_data.scenes(SMALL)["train"][0][1][0]
    file = root / "labels" / "train" / "00.txt"
    corners = [(x1 / 128, y1 / 96), (x2 / 128, y1 / 96 + 0.01), (x1 / 128 + 0.01, y2 / 96)]
    lines = file.read_text().splitlines(keepends=True)
    lines[0] = f"{label} " + " ".join(f"{x} {y}" for x, y in corners) + "\n"
    file.write_text("".join(lines))
    data = load(root)
    detection_data.check(data, SMALL)
    assert "Polygons become their bounding boxes: 1 (labels/train/00.txt, line 1)" in data.inventory


def test_keypoints_after_a_box_are_not_a_polygon(root: Path) -> None:
    for file in (root / "labels").rglob("*.txt"):
        lines = file.read_text().splitlines()
        file.write_text("".join(f"{line} 0.1 0.1 2 0.9 0.9 1\n" for line in lines))
    config = root / "data.yaml"
    config.write_text(config.read_text() + "kpt_shape: [2, 3]\n")
    detection_data.check(load(root), SMALL)


def test_an_image_without_a_label_file_shows_no_object(root: Path) -> None:
    (root / "labels" / "train" / "01.txt").unlink()
    (root / "labels" / "train" / "02.txt").write_text("\n")
    data = load(root)
    assert (data.train.labels[1:, :, 4] == -1).all()
    assert is_labelled(data.train.labels).all()
    line = "Without a label file, so without an object: 1 images (images/train/01.png)"
    assert line in data.inventory


def test_what_is_left_out_is_listed(root: Path) -> None:
    for file in (root / "labels" / "test").iterdir():
        file.unlink()
    (root / "labels" / "train" / "more.txt").write_text("0 .5 .5 .1 .1\n")
    (root / "labels" / "train" / "classes.txt").write_text("square\n")
    (root / "labels" / "train" / "00.txt").write_text(
        "0 .5 .5 .001 .5\n1 .5 nan .1 .1\n1 .5 .5 .2 .2\n"
    )
    (root / "unlabeled").mkdir()
    detection_data.save(root / "unlabeled" / "0.png", detection_data.scene(99)[0])
    data = load(root)
    assert data.train.labels[-1].isnan().all()
    rows = np.concatenate([part.labels.flatten(0, 1) for part in (data.train, data.test)])
    rows = detection_data.in_pixels(rows, data.size)
    assert any(np.allclose(row, (51.2, 38.4, 76.8, 57.6, 1)) for row in rows)
    for line in (
        "Left out: 2 images of test, since none of them has a label file (images/test/00.png, "
        "images/test/01.png)",
        "Left out: 1 label files without an image (labels/train/more.txt)",
        "Left out: 1 boxes narrower or lower than 1 pixel (labels/train/00.txt, line 1)",
        "Left out: 1 boxes that are not finite (labels/train/00.txt, line 2)",
    ):
        assert line in data.inventory
    assert not any("Without a label file" in line for line in data.inventory)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 .5 .5 1.2 .1", "1.2 is not a share from 0 to 1"),
        ("0 .5 -.2 .1 .1", "-0.2 is not a share from 0 to 1"),
        ("0 64 48 20 20", "64 is not a share"),
        ("0 .5 .5 .1", "has 4 numbers; expected 5"),
        ("0 .5 .5 .1 .1 .9", "has 6 numbers; expected 5"),
        ("disc .5 .5 .1 .1", "'disc .5 .5 .1 .1' is not numbers"),
        ("3 .5 .5 .1 .1", "the class is 3; accepted: 0 to 2"),
        ("-1 .5 .5 .1 .1", "the class is -1"),
        ("0.5 .5 .5 .1 .1", "the class is 0.5"),
        ("0 .5 .5 -.0009 .1", "ends before it begins"),
    ],
)
def test_a_wrong_line_is_named(root: Path, line: str, said: str) -> None:
    (root / "labels" / "val" / "01.txt").write_text(f"0 .5 .5 .1 .1\n{line}\n")
    with pytest.raises(DataError, match=rf"shapes/labels/val/01\.txt, line 2.*{said}"):
        load(root)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("names: [", "names: {1: ", "expected ',' or '}'"),
        ("names: [square, disc, ring]", "names: {1: a, 2: b}", r"the keys \[1, 2\], not 0, 1, 2"),
        ("names: [square, disc, ring]", "names: []", r"names is \[\]"),
        ("names: [square, disc, ring]", "nc: 3", "names is None"),
        ("names: [square, disc, ring]", "names: [a, no, b]", "the class name False is no text"),
        ("names: [square, disc, ring]", "names: [a, b, a]", "two classes have the name 'a'"),
        ("path: .", "nc: 4", "nc is 4, but names has 3"),
        ("path: .", "path: [1]", r"path is \[1\], not a folder"),
        ("train: images/train", "train: images/none", "train is 'images/none', and there is no"),
        ("train: images/train", "train: 3", "train is 3, not a folder"),
        ("train: images/train", "train: labels/train", "there are no images in"),
        ("train: images/train", "train: data.yaml", ", line 1: there is no image 'path:"),
        ("train: images/train\n", "", "names no folder of train"),
    ],
)
def test_a_wrong_data_yaml_is_named(root: Path, before: str, after: str, said: str) -> None:
    file = root / "data.yaml"
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))
    with pytest.raises(DataError, match=rf"shapes/data\.yaml.*{said}"):
        load(root)


def test_of_two_files_one_is_named(root: Path) -> None:
    (root / "more.yml").write_text((root / "data.yaml").read_text())
    with pytest.raises(DataError, match=r"both data\.yaml and more\.yml describe data"):
        load(root)
    detection_data.check(load(root / "more.yml"), SMALL)


def test_train_without_a_box_is_refused(root: Path) -> None:
    for file in (root / "labels" / "train").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="no image of train has a box"):
        load(root)


def test_an_image_that_cannot_be_read_is_counted_with_the_others(tmp_path: Path) -> None:
    root = detection_data.write(tmp_path / "shapes", "yolo", splits={**SMALL, "train": 101})
    (root / "images" / "train" / "00.png").write_bytes(b"no image")
    data = load(root)
    assert data.skipped == ("images/train/00.png",)
    assert len(data.train) == 100


def test_a_folder_without_data_yaml_is_named(root: Path) -> None:
    (root / "data.yaml").unlink()
    with pytest.raises(DataError, match=r"has labels but no data\.yaml"):
        load(root)
