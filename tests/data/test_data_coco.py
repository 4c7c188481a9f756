"""COCO JSON is read in its common nestings, and what is wrong with it is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import detection_data
import pytest

import kdsearch.data as datasets
from kdsearch.data.base import ImageData, is_labelled
from kdsearch.errors import DataError

SMALL = {"train": 3, "val": 2, "test": 2}


def load(root: Path) -> ImageData:
    return datasets.load(str(root), cache_dir=root.parent / "cache")


def test_split_files_beside_their_folders(tmp_path: Path) -> None:
    data = load(detection_data.write(tmp_path / "shapes", splits=SMALL))
    detection_data.check(data, SMALL)
    assert data.classes == detection_data.CLASSES
    assert data.inventory[0] == "Data shapes: 3 classes; train 3, val 2, test 2"


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_{}2017.json", "{}2017"),
        ("annotations/instances_{}.json", "images/{}"),
        ("annotations/{}.json", "{}"),
        ("{}/_annotations.coco.json", "{}"),
    ],
)
@pytest.mark.parametrize("val", ["val", "valid"])
def test_other_nestings(tmp_path: Path, annotations: str, images: str, val: str) -> None:
    root = detection_data.write(tmp_path / "given", splits=SMALL)
    target = tmp_path / "shapes"
    for split, name in (("train", "train"), ("val", val), ("test", "test")):
        for old, new in ((split, images), (f"{split}.json", annotations)):
            (target / new.format(name)).parent.mkdir(parents=True, exist_ok=True)
            (root / old).rename(target / new.format(name))
    detection_data.check(load(target), SMALL)


@pytest.mark.parametrize("name", ["_annotations.coco.json", "annotations/instances_default.json"])
def test_one_file_gives_train_and_the_other_splits_are_taken_from_it(
    tmp_path: Path, name: str
) -> None:
    root = detection_data.write(tmp_path / "shapes", splits={"train": 20})
    (root / name).parent.mkdir(exist_ok=True)
    (root / "train.json").rename(root / name)
    (root / "train").rename(root / "images")
    data = load(root)
    assert [len(part) for part in (data.train, data.val, data.test)] == [16, 2, 2]
    assert "Taken from train: val and test" in data.inventory


def edit(root: Path, change: Callable[[dict[str, Any]], object], split: str = "train") -> None:
    file = root / f"{split}.json"
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return detection_data.write(tmp_path / "shapes", splits=SMALL)


def test_crowds_are_ignored_and_empty_images_are_labelled(root: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        first = content["annotations"][0]
        first |= {"iscrowd": 1, "segmentation": {"size": [96, 128], "counts": "abc"}}
        last = content["images"][-1]["id"]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != last]

    edit(root, change)
    data = load(root)
    label = detection_data.scenes(SMALL)["train"][0][1][0][4]
    assert data.train.labels[0, 0, 4] == -2 - label
    assert (data.train.labels[-1, :, 4] == -1).all()
    assert is_labelled(data.train.labels).all()


def test_an_unused_class_above_all_others_is_left_out(root: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for entry in content["categories"]:
            entry["supercategory"] = "shapes"
        content["categories"].insert(0, {"id": 0, "name": "shapes", "supercategory": "none"})

    for split in SMALL:
        edit(root, change, split)
    data = load(root)
    assert data.classes == detection_data.CLASSES
    assert any("the class 'shapes', since it has no boxes" in line for line in data.inventory)
    detection_data.check(data, SMALL)


def test_an_unused_class_stays_where_the_others_are_not_below_it(root: Path) -> None:
    for split in SMALL:
        edit(root, lambda c: c["categories"].append({"id": 7, "name": "star"}), split)
    assert load(root).classes == (*detection_data.CLASSES, "star")


def test_one_class_is_enough(tmp_path: Path) -> None:
    data = load(detection_data.write(tmp_path / "shapes", splits=SMALL, classes=1))
    assert data.classes == ("square",)
    assert data.train.labels[:, :, 4].max() == 0


def test_category_ids_may_differ_between_splits(root: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for entry in content["categories"]:
            entry["id"] += 5
        for entry in content["annotations"]:
            entry["category_id"] += 5

    edit(root, change, "val")
    detection_data.check(load(root), SMALL)


def test_what_is_left_out_is_listed(root: Path) -> None:
    (root / "train" / "00.png").rename(root / "train" / "kept.png")
    (root / "train" / "more.png").write_bytes((root / "train" / "01.png").read_bytes())
    box = {"image_id": 100, "category_id": 10}

    def change(content: dict[str, Any]) -> None:
        content["images"][0]["file_name"] = "kept.png"
        content["annotations"] += [
            {"id": 70, "bbox": [5, 5, 0, 9], **box},
            {"id": 71, "bbox": [5, float("nan"), 9, 9], **box},
            {"id": 72, "bbox": [128, 5, 9, 9], **box},
            {"id": 73, "bbox": [120, 5, 30, 9], **box},
        ]

    edit(root, change)
    lines = load(root).inventory
    for line in (
        "Left out: 1 boxes narrower or lower than 1 pixel (train.json: annotation 70)",
        "Left out: 1 boxes that are not finite (train.json: annotation 71)",
        "Left out: 1 boxes outside of their image (train.json: annotation 72)",
        "Left out: 1 images that no annotation file lists (train/more.png)",
        "Clipped: 1 boxes that are partly outside of their image (train.json: annotation 73)",
    ):
        assert line in lines


def test_unlabelled_images_join_train_without_boxes(root: Path) -> None:
    (root / "train" / "more.png").write_bytes((root / "train" / "01.png").read_bytes())
    (root / "unlabeled").mkdir()
    (root / "train" / "more.png").rename(root / "unlabeled" / "more.png")
    data = load(root)
    assert is_labelled(data.train.labels).tolist() == [True, True, True, False]
    assert data.train.labels[-1].isnan().all()


def test_folders_of_classes_beside_other_json_are_not_taken_for_coco(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        for name in ("a", "b"):
            for number in range(2):
                pixels, _ = detection_data.scene(number + 7 * len(split) + ord(name))
                detection_data.save(tmp_path / "pets" / split / name / f"{number}.png", pixels)
        (tmp_path / "pets" / f"{split}.json").write_text('{"images": []}')
    assert load(tmp_path / "pets").classes == ("a", "b")


def _set(part: str, **values: object) -> Callable[[dict[str, Any]], object]:
    return lambda content: content[part][1].update(values)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_set("annotations", bbox=[1, 2, 3]), r"annotation 2 has the bbox \[1, 2, 3\]; expected"),
        (_set("annotations", bbox=None), "annotation 2 has the bbox None"),
        (_set("annotations", bbox=[1, 2, "3", 4]), r"annotation 2 has the bbox \[1, 2, '3', 4\]"),
        (_set("annotations", bbox=[9, 2, -3, 4]), r"annotation 2: the box \(9, 2, 6, 6\)"),
        (_set("annotations", image_id=77), "annotation 2 is of image 77, which the file"),
        (_set("annotations", image_id=[]), r"annotation 2 is of image \[\], which the file"),
        (_set("annotations", category_id=99), "annotation 2 is of category 99, which the file"),
        (_set("annotations", id=1), "two entries have the annotation id 1"),
        (_set("images", id=100), "two entries have the image id 100"),
        (_set("images", id=None), "has the id None, not a number"),
        (_set("images", file_name="00.png"), "two images have the file_name '00.png'"),
        (_set("images", file_name="../train/01.png"), "image 101: '../train/01.png' is outside"),
        (_set("images", file_name=7), "image 101 has the file_name 7"),
        (_set("images", file_name="x.png"), "1 of its 3 images are not in .*train: x.png; add"),
        (_set("images", width=0), "image 101 has width 0 and height 96"),
        (_set("images", width=None), "image 101 has width None and height 96"),
        (_set("images", width=640), "it has 128 x 96 pixels .* states 640 x 96"),
        (_set("categories", name="square"), "two categories have the name 'square'"),
        (_set("categories", name=""), "category 20 has the name ''"),
        (_set("categories", name="cube"), "categories differ .* has 'cube', 'disc'"),
        (lambda content: content.update(images={}), "has no list 'images'"),
        (lambda content: content["images"].insert(0, 3), r"images\[0\] is 3, not an object"),
        (lambda content: content.update(annotations=[]), "no image of train has a box"),
    ],
)
def test_what_is_wrong_is_named(
    root: Path, change: Callable[[dict[str, Any]], object], said: str
) -> None:
    edit(root, change)
    with pytest.raises(DataError, match=said) as caught:
        load(root)
    assert "shapes" in str(caught.value)


def test_damaged_json_is_named(root: Path) -> None:
    file = root / "train.json"
    file.write_text(file.read_text()[:-9])
    with pytest.raises(DataError, match=r"train\.json: .* line 1 column"):
        load(root)


def test_two_files_of_one_split_and_none_of_train_are_refused(root: Path) -> None:
    (root / "valid.json").write_bytes((root / "val.json").read_bytes())
    with pytest.raises(DataError, match=r"val\.json and valid\.json are one split, val"):
        load(root)
    (root / "valid.json").unlink()
    (root / "train.json").unlink()
    with pytest.raises(DataError, match="none of train"):
        load(root)
