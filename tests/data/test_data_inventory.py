"""The inventory states what a data set holds and what was left out, and only what is true of it."""

import json
from pathlib import Path

import detection_data
import numpy as np
import pytest
from PIL import Image

from kdsearch.data import load


def fill(root: Path, counts: dict[str, int], *, size: tuple[int, int] = (8, 8)) -> Path:
    """Write so many images, all different, to each folder."""
    rng = np.random.default_rng(len(counts))
    for name, count in counts.items():
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:03}.png")
    return root


def inventory(root: Path, **how) -> tuple[str, ...]:
    return load(str(root), cache_dir=root.parent / "cache", **how).inventory


@pytest.fixture
def whole(tmp_path):
    counts = {f"{split}/{name}": 4 for split in ("train", "val", "test") for name in "ab"}
    return fill(tmp_path / "pets", counts)


def test_a_set_without_peculiarities_takes_two_lines(whole):
    assert inventory(whole) == (
        "Data pets: 2 classes; train 8, val 8, test 8",
        "Images of a class in train: 4",
    )


def test_what_is_taken_from_train_is_stated(tmp_path):
    fill(tmp_path / "pets", {"train/a": 20, "train/b": 30, "unlabeled/x": 3})
    assert inventory(tmp_path / "pets", subset=10) == (
        "Data pets: 2 classes; train 10 (--subset), val 5, test 5, unlabeled 3",
        "Taken from train: val and test",
        "Images of a class in train: 4 (a) to 6 (b)",
    )


def test_equal_images_in_two_splits_are_counted(whole):
    (whole / "val/a/000.png").write_bytes((whole / "train/a/001.png").read_bytes())
    Image.open(whole / "train/b/001.png").save(whole / "test/b/000.bmp")
    found = inventory(whole)
    assert "1 of 8 images of val are also in train: accuracy on val is too high" in found
    assert "1 of 9 images of test are also in train: accuracy on test is too high" in found


def test_an_image_under_two_classes_is_named(whole):
    (whole / "train/b/000.png").write_bytes((whole / "train/a/001.png").read_bytes())
    assert "2 images are equal to an image of another class: one label is wrong" in inventory(whole)


def test_a_class_without_images_in_a_split_is_named(whole):
    for path in (whole / "val/b").iterdir():
        path.unlink()
    assert "val has no images of b, so they are never validated" in inventory(whole)


def test_what_the_crop_cuts_away_is_stated(tmp_path):
    counts = {f"{split}/{name}": 4 for split in ("train", "val", "test") for name in "ab"}
    root = fill(tmp_path / "pets", counts, size=(8, 12))
    line = "--fit crop cuts 33 % off the typical image; pad and squash keep all of it"
    assert line in inventory(root)
    for fit in ("pad", "squash"):
        assert len(inventory(root, fit=fit)) == 2


def test_what_was_left_out_is_counted_by_reason(whole):
    for number in range(5):
        (whole / f"train/a/{number}.heic").write_bytes(b"")
    line = "Left out: 5 .heic files (train/a/0.heic, train/a/1.heic, train/a/2.heic and 2 more)"
    assert line in inventory(whole)


def test_unreadable_images_are_named_with_the_reason(tmp_path):
    root = fill(tmp_path / "pets", {"train/a": 100, "train/b": 100})
    (root / "train/a/007.png").write_bytes(b"")
    found = inventory(root)
    assert "Left out: 1 unreadable (train/a/007.png: it is empty (0 bytes))" in found


def test_control_characters_do_not_reach_the_terminal(tmp_path):
    root = fill(tmp_path / "pe\x1b[2Jts", {"train/a\x1b[31m": 4, "train/b": 9})
    assert all(line.isprintable() for line in inventory(root))


def test_boxes_are_counted_by_class_and_by_what_makes_them_hard(tmp_path):
    root = detection_data.write(tmp_path / "shapes", splits={"train": 3, "val": 3, "test": 3})
    boxes = {
        "train": [[(0, 0, 20, 20, 0), (30, 0, 50, 20, 0)], [(0, 0, 7, 90, 1)], []],
        "val": [[(0, 0, 20, 20, 2), (30, 0, 50, 20, 1)], [], []],
        "test": [[(0, 0, 20, 8, 1)], [(5, 5, 80, 12, 0), (0, 0, 9, 9, 2)], [(1, 1, 9, 9, 2)]],
    }
    for split, found in boxes.items():
        content = detection_data.coco(found)
        if split == "test":
            content["annotations"][-1]["iscrowd"] = 1
        (root / f"{split}.json").write_text(json.dumps(content))
    assert inventory(root) == (
        "Data shapes: 3 classes; train 3, val 3, test 3",
        "Boxes of a class in train: 0 (ring) to 2 (square)",
        "train has no boxes of ring, so they are never learned",
        "val has no boxes of square, so they are never validated",
        "Images without boxes: train 1, val 2",
        "Ignored boxes, crowds or difficult: 1",
        "2 boxes are below 8 px at 128 x 96",
    )
    # At half the size boxes of 7 to 9 pixels have less than 5, those of 20 have 10.
    assert "4 boxes are below 8 px at 64 x 64" in inventory(root, size=64)
