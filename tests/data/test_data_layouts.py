"""Pascal VOC, Cityscapes and ADE20K are read as they are; what lacks is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_masks
from PIL import Image

import kdsearch.data as datasets
from kdsearch.data import cityscapes, voc
from kdsearch.data.base import SEGMENTATION, VOID, ImageData
from kdsearch.errors import DataError

IDS = np.array([0, 15, 20])  # of ground, box, disc: background, person, tvmonitor
LABEL_IDS = np.array([7, 24, 0])  # road, person, and an id that is no class


def load(root: Path) -> ImageData:
    return datasets.load(str(root), cache_dir=root.parent / "cache")


def save_mask(ids: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids.astype(np.uint8)).save(file)


def ids_of(seed: int, table: np.ndarray) -> np.ndarray:
    _, ids = toy_masks.scene(seed)
    return np.where(ids == toy_masks.VOID_ID, VOID, table[ids.clip(max=2)])


def write_voc(root: Path) -> Path:
    seed = 0
    for split, count in toy_masks.COUNTS.items():
        names = [f"{split}_{number}" for number in range(count)]
        for name in names:
            pixels, _ = toy_masks.scene(seed)
            (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
            if split != "test":
                save_mask(ids_of(seed, IDS), root / "SegmentationClass" / f"{name}.png")
            seed += 1
        lists = root / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def write_cityscapes(root: Path, *, kind: str = "labelIds") -> Path:
    seed = 0
    for split, count in toy_masks.COUNTS.items():
        for number in range(count):
            stem = f"town_{number:06d}_000019"
            image = root / "leftImg8bit" / split / "town" / f"{stem}_leftImg8bit.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(toy_masks.scene(seed)[0]).save(image)
            ids = ids_of(seed, LABEL_IDS if kind == "labelIds" else np.array([0, 11, VOID]))
            save_mask(ids, root / "gtFine" / split / "town" / f"{stem}_gtFine_{kind}.png")
            seed += 1
    return root


def test_voc_is_read_by_its_lists_with_its_classes_and_without_its_test(tmp_path: Path) -> None:
    data = load(write_voc(tmp_path / "VOC2012"))
    assert (data.task, len(data.classes)) == (SEGMENTATION, 21)
    assert len(data.val) == 6
    assert len(data.train) + len(data.test) == 12  # test is carved from train
    assert any("test images, since 6 have no mask" in line for line in data.inventory)
    expected = np.full((64, 64), VOID, np.uint8)
    expected[8:56] = ids_of(12, IDS)
    assert np.array_equal(data.val.labels[0].numpy(), expected)
    known = {"background": (0, 0, 0), "person": (192, 128, 128), "tvmonitor": (0, 64, 128)}
    shown = dict(zip(data.classes, data.colours, strict=True))
    assert {name: shown[name] for name in known} == known


def test_voc_may_have_classes_of_its_own_and_names_what_lacks(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "VOC2012")
    classes = [{"id": int(i), "name": n} for i, n in zip(IDS, toy_masks.CLASSES, strict=True)]
    (root / "classes.json").write_text(json.dumps({"classes": classes}))
    assert load(root).classes == toy_masks.CLASSES
    (root / "SegmentationClass" / "val_3.png").unlink()
    with pytest.raises(DataError, match=r"val.txt: 1 of 6 names .* SegmentationClass: val_3;"):
        voc.read(root)


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes_has_its_19_classes_by_either_kind_of_mask(tmp_path: Path, kind: str) -> None:
    data = load(write_cityscapes(tmp_path / "cityscapes", kind=kind))
    assert (data.classes[0], data.classes[11], len(data.classes)) == ("road", "person", 19)
    assert (len(data.val), len(data.train) + len(data.test)) == (6, 12)
    expected = np.full((64, 64), VOID, np.uint8)
    expected[8:56] = ids_of(12, np.array([0, 11, VOID]))
    assert np.array_equal(data.val.labels[0].numpy(), expected)
    assert data.colours[0] == (128, 64, 128)
    assert set(data.train.labels.unique().tolist()) == {0, 11, VOID}
    assert torch.equal(data.val.labels.unique(), torch.tensor([0, 11, VOID]).byte())


def test_an_image_of_cityscapes_without_a_mask_is_named(tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path / "cityscapes")
    next((root / "gtFine" / "val").rglob("*000002*")).unlink()
    with pytest.raises(DataError, match=r"1 images have no mask .*labelIds.png: town_000002"):
        cityscapes.read(root)


def test_voc_without_training_images_is_refused(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "VOC")
    file = root / "ImageSets" / "Segmentation" / "train.txt"
    file.write_text("\n")
    with pytest.raises(DataError, match=r"train\.txt lists no images"):
        load(root)


def test_a_colour_is_three_numbers_up_to_255(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "VOC")
    classes = [{"id": 0, "name": "ground", "colour": [300, 0, 0]}, {"id": 15, "name": "box"}]
    (root / "classes.json").write_text(json.dumps({"classes": classes}))
    with pytest.raises(DataError, match=r"colour\.0[\s\S]*less than or equal to 255"):
        load(root)


ADE = np.array([0, 1, 3])  # of ground, box, disc: void and two classes
INFO = "Idx\tRatio\tName\n1\t.5\tdoor, double door\n2\t.1\tsky\n3\t.1\tdoor, screen door\n"


def write_ade20k(root: Path, *, holds_all: bool = False) -> Path:
    seed = 0
    for split, count in (("training", 12), ("validation", 6)):
        for number in range(count):
            image = root / "images" / split / f"ADE_{number}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(toy_masks.scene(seed)[0]).save(image, quality=95)
            ids = ADE[toy_masks.scene(seed)[1].clip(max=2)]
            if holds_all and number == 0:
                ids = np.resize(np.arange(151), ids.shape)
            save_mask(ids, root / "annotations" / split / f"ADE_{number}.png")
            seed += 1
    return root


def void_and_classes(seed: int, count: int) -> np.ndarray:
    """Return the mask of a scene on its canvas: id 0 is void, id 1 the first class."""
    canvas = np.full((64, 64), VOID, np.uint8)
    ids = ADE[toy_masks.scene(seed)[1].clip(max=2)]
    canvas[8:56] = np.where(ids == 0, VOID, ids - 1)
    assert ids.max() <= count
    return canvas


def test_ade20k_is_read_by_its_list_of_names_with_0_as_void(tmp_path: Path) -> None:
    root = write_ade20k(tmp_path / "ADEChallengeData2016")
    (root / "objectInfo150.txt").write_text(INFO)
    data = load(root)
    assert data.classes == ("door, double door", "sky", "door, screen door")
    assert (len(data.val), len(data.train) + len(data.test)) == (6, 12)
    assert np.array_equal(data.val.labels[1].numpy(), void_and_classes(13, 3))
    note = "Read as ADE20K, since objectInfo150.txt is there: 0 is void, the classes are 1 to 3"
    assert note in data.inventory


@pytest.mark.parametrize("holds_all", [False, True])
def test_ade20k_without_names_is_known_by_its_other_list_or_all_its_ids(
    tmp_path: Path, holds_all: bool
) -> None:
    root = write_ade20k(tmp_path / "ade", holds_all=holds_all)
    if not holds_all:
        (root / "sceneCategories.txt").write_text("ADE_0 airport\n")
    data = load(root)
    assert data.classes == tuple(map(str, range(1, 151)))
    assert np.array_equal(data.val.labels[1].numpy(), void_and_classes(13, 150))
    assert any(line.startswith("Read as ADE20K, since ") for line in data.inventory)


def test_other_masks_in_the_folders_of_ade20k_are_plain_and_a_note_says_so(tmp_path: Path) -> None:
    root = write_ade20k(tmp_path / "mine")
    data = load(root)
    assert data.classes == ("0", "1", "3")
    assert any("In its masks 0 is a class; if 0 is void, as in ADE" in x for x in data.inventory)
    entries = [{"id": 1, "name": "wall"}, {"id": 3, "name": "sky"}]
    (root / "classes.json").write_text(json.dumps({"classes": entries, "ignore_index": 0}))
    data = load(root)
    assert data.classes == ("wall", "sky")
    assert not any("0 is a class" in line for line in data.inventory)


def test_what_is_wrong_in_ade20k_is_named(tmp_path: Path) -> None:
    root = write_ade20k(tmp_path / "ade")
    (root / "objectInfo150.txt").write_text(INFO.replace("\n3\t", "\n4\t"))
    with pytest.raises(DataError, match=r"objectInfo150\.txt: .* from 1 without a gap"):
        load(root)
    (root / "objectInfo150.txt").write_text(INFO[: INFO.index("3\t.1")])
    with pytest.raises(DataError, match=r"ADE_\d+\.png: the pixel value 3 .* 1 door, 2 sky"):
        load(root)
    (root / "annotations" / "training" / "ADE_3.png").unlink()
    with pytest.raises(DataError, match=r"1 of 12 images have no mask .* ADE_3\.jpg"):
        load(root)
