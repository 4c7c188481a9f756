"""Image and mask folders are read by index, and what is wrong is named."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_masks
from PIL import Image

import kdsearch.data as datasets
from kdsearch.data.base import SEGMENTATION, VOID, ImageData, is_labelled
from kdsearch.data.masks import is_layout
from kdsearch.errors import DataError


def load(root: Path, size: int | None = None) -> ImageData:
    return datasets.load(str(root), cache_dir=root.parent / "cache", size=size)


def expected(seed: int) -> np.ndarray:
    """Return the classes of a scene on its canvas of 64 x 64: 48 rows between padding."""
    canvas = np.full((64, 64), VOID, np.uint8)
    _, ids = toy_masks.scene(seed)
    canvas[8:56] = np.where(ids == toy_masks.VOID_ID, VOID, ids)
    return canvas


@pytest.mark.parametrize("is_split_first", [False, True])
def test_both_nestings_give_images_and_masks_that_lie_on_each_other(
    tmp_path: Path, is_split_first: bool
) -> None:
    data = load(toy_masks.write(tmp_path / "toys", is_split_first=is_split_first))
    assert (data.task, data.classes, data.size) == (SEGMENTATION, toy_masks.CLASSES, (64, 64))
    assert [len(part) for part in (data.train, data.val, data.test)] == [12, 6, 6]
    assert data.val.labels.dtype == torch.uint8
    for place in range(6):
        assert np.array_equal(data.val.labels[place].numpy(), expected(12 + place))
        pixels, _ = toy_masks.scene(12 + place)
        image = data.val.at(torch.tensor([place]))[0].numpy()
        assert np.array_equal(image[:, 8:56], pixels.transpose(2, 0, 1))
        assert not image[:, :8].any()
        assert not image[:, 56:].any()


def test_masks_of_whole_splits_are_mapped_from_disk(tmp_path: Path) -> None:
    data = load(toy_masks.write(tmp_path / "toys"))
    starts = [part.labels.data_ptr() for part in (data.train, data.val)]
    assert starts[1] - starts[0] == 12 * 64 * 64


def test_without_a_class_list_ids_are_read_from_the_masks(tmp_path: Path) -> None:
    data = load(toy_masks.write(tmp_path / "toys", has_classes=False))
    assert data.classes == ("0", "1", "2", "9")
    assert (data.train.labels[:, 55] == 3).all()  # the id 9 is no void without a list


@pytest.mark.parametrize(
    ("values", "classes", "void"), [({0, 255}, ("0", "255"), 0), ({0, 7, 255}, ("0", "7"), 1)]
)
def test_255_is_void_unless_0_is_the_only_other_id(
    tmp_path: Path, values: set[int], classes: tuple[str, ...], void: int
) -> None:
    for number in range(9):
        image, mask = (tmp_path / "toys" / part / f"{number}.png" for part in ("images", "masks"))
        toy_masks.save(tmp_path, image, mask, number)
        ids = np.resize(np.array(sorted(values), np.uint8), (48, 64))
        Image.fromarray(ids).save(mask)
    data = load(tmp_path / "toys")
    assert data.classes == classes
    assert bool((data.train.labels[:, 8:56] == VOID).any()) == bool(void)
    assert len(data.val) > 0
    assert len(data.test) > 0


def test_images_are_scaled_to_fit_and_never_stretched(tmp_path: Path) -> None:
    root = tmp_path / "toys"
    for number, (height, width) in enumerate([(180, 240)] * 8 + [(240, 120)]):
        image, mask = (root / part / "train" / f"{number}.png" for part in ("images", "masks"))
        toy_masks.save(root, image, mask, number, height=height, width=width)
    toy_masks.write_classes(root)
    data = load(root)
    assert data.size == (192, 256)
    tall = next(i for i in range(len(data.train)) if (data.train.labels[i, 0, :80] == VOID).all())
    assert (data.train.labels[tall, :191, 80:176] != VOID).all()
    assert load(root, size=128).size == (96, 128)


def test_grey_and_palette_masks_of_few_bits_are_read_by_index(tmp_path: Path) -> None:
    ids = np.arange(64 * 48, dtype=np.uint8).reshape(48, 64) % 4
    root = toy_masks.write(tmp_path / "toys")
    (root / "classes.json").write_text(json.dumps(["a", "b", "c", "d"]))
    for file in root.glob("masks/*/*.png"):
        file.write_bytes(grey_of_two_bits(ids))
    data = load(root)
    assert np.array_equal(data.train.labels[0, 8:56].numpy(), ids)


def grey_of_two_bits(ids: np.ndarray) -> bytes:
    rows = b"".join(
        b"\0" + bytes(int("".join(f"{v:02b}" for v in row[i : i + 4]), 2) for i in range(0, 64, 4))
        for row in ids
    )

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", 64, 48, 2, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(*part) for part in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def test_masks_in_colours_are_read_by_the_colour_table(tmp_path: Path) -> None:
    root = toy_masks.write(tmp_path / "toys")
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(toy_masks.COLOURS)] = toy_masks.COLOURS
    by_index = load(root).train.labels.clone()
    for file in root.glob("masks/*/*.png"):
        ids = np.asarray(Image.open(file))
        Image.fromarray(colours[np.where(ids == 9, 0, ids)]).save(file)
    by_colour = load(root).train.labels
    inside = by_index != VOID
    assert torch.equal(by_colour[inside], by_index[inside])


Break = Callable[[Path, np.ndarray], object]
FLAWS: dict[str, tuple[Break, tuple[str, ...]]] = {
    "id": (
        lambda mask, ids: Image.fromarray(np.where(ids == 1, 77, ids).astype(np.uint8)).save(mask),
        ("03.png", "77", "0 ground, 1 box, 2 disc, 9 void"),
    ),
    "size": (
        lambda mask, ids: Image.fromarray(ids[:-1]).save(mask),
        ("03.png", "47 x 64", "48 x 64"),
    ),
    "missing": (lambda mask, ids: mask.unlink(), ("1 of 12 images", "03.png", "unlabeled")),
    "16 bits": (
        lambda mask, ids: Image.fromarray(ids.astype(np.uint16)).save(mask),
        ("03.png", "8 bits"),
    ),
    "colour": (
        lambda mask, ids: Image.fromarray(np.full((48, 64, 3), 3, np.uint8)).save(mask),
        ("03.png", "(3, 3, 3)", "(60, 60, 60) ground"),
    ),
    "jpeg": (
        lambda mask, ids: mask.rename(mask.with_suffix(".jpg")),
        ("03.jpg", "PNG"),
    ),
    "no masks": (
        lambda mask, ids: [file.unlink() for file in mask.parents[1].glob("val/*")],
        ("6 of 6 images", "val"),
    ),
    "classes": (
        lambda mask, ids: (mask.parents[2] / "classes.json").write_text('[{"id": "sky"}]'),
        ("classes.json", "id"),
    ),
    "colour, no table": (
        lambda mask, ids: [
            (mask.parents[2] / "classes.json").unlink(),
            Image.fromarray(np.full((48, 64, 3), 3, np.uint8)).save(mask),
        ],
        ("03.png", "in colours", "classes.json"),
    ),
    "colour, no colours in the table": (
        lambda mask, ids: [
            (mask.parents[2] / "classes.json").write_text(
                '{"classes": ["ground", "box", "disc"], "ignore_index": 9}'
            ),
            Image.fromarray(np.full((48, 64, 3), 3, np.uint8)).save(mask),
        ],
        ("03.png", "add a 'colour' to each class in classes.json"),
    ),
    "16 bits everywhere, no table": (
        lambda mask, ids: [
            (mask.parents[2] / "classes.json").unlink(),
            *(Image.fromarray(ids.astype(np.uint16)).save(m) for m in mask.parent.iterdir()),
        ],
        ("no mask of train can be read", "00.png", "8 bits"),
    ),
    "one id, no table": (
        lambda mask, ids: [
            (mask.parents[2] / "classes.json").unlink(),
            *(Image.fromarray(0 * ids + 7).save(m) for m in mask.parent.iterdir()),
        ],
        ("at least two classes", "found 7"),
    ),
    "no images": (
        lambda mask, ids: [image.unlink() for image in mask.parents[2].glob("images/val/*")],
        ("images/val", "no images in it"),
    ),
    "classes beside masks": (
        lambda mask, ids: toy_masks.save(
            mask, *(mask.parents[2] / "train" / part / "1.png" for part in ("cat", "dog")), 0
        ),
        ("images with masks, and classes in", "cat, dog", "one task"),
    ),
    "one class": (
        lambda mask, ids: (mask.parents[2] / "classes.json").write_text('["sky"]'),
        ("classes.json", "two classes"),
    ),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_what_is_wrong_with_a_mask_is_named(tmp_path: Path, flaw: str) -> None:
    root = toy_masks.write(tmp_path / "toys")
    damage, words = FLAWS[flaw]
    mask = root / "masks" / "train" / "03.png"
    damage(mask, np.asarray(Image.open(mask)).copy())
    with pytest.raises(DataError) as error:
        load(root)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_unlabelled_images_join_train_without_a_class(tmp_path: Path) -> None:
    root = toy_masks.write(tmp_path / "toys")
    extra = root / "images" / "unlabeled"
    toy_masks.save(root, extra / "a.png", tmp_path / "elsewhere.png", 99)
    data = load(root)
    assert len(data.train) == 13
    assert is_labelled(data.train.labels).tolist() == [True] * 12 + [False]
    assert len(data.labelled) == 12


def test_folders_of_classes_are_not_taken_for_masks(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / "a" / "train" / name).mkdir(parents=True)
    assert not is_layout(tmp_path / "a")  # no mask in it
    for name in ("cat", "dog"):
        (tmp_path / "b" / "train" / name).mkdir(parents=True)
    assert not is_layout(tmp_path / "b")


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "toys").mkdir()
    with pytest.raises(DataError, match=r"toys: the folder is empty"):
        load(tmp_path / "toys")


def test_folders_in_a_split_of_images_and_masks_are_no_classes(tmp_path: Path) -> None:
    root = toy_masks.write(tmp_path / "toys", is_split_first=True)
    toy_masks.save(root, root / "train" / "previews" / "a.png", tmp_path / "b.png", 99)
    assert load(root).task == SEGMENTATION
