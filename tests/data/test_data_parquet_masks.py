"""Masks in Parquet files are read as those of folders are, and what is wrong is named."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import toy_masks
from PIL import Image

import kdsearch.data as datasets
from kdsearch.data.base import SEGMENTATION, VOID, ImageData
from kdsearch.errors import DataError

SPLITS = {"train": range(12), "validation": range(12, 18)}


def png(pixels: np.ndarray, kind: str = "PNG") -> dict[str, object]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return {"bytes": file.getvalue(), "path": None}


def columns(split: str) -> tuple[list[object], list[object]]:
    scenes = [toy_masks.scene(seed) for seed in SPLITS[split]]
    return [png(pixels) for pixels, _ in scenes], [png(ids) for _, ids in scenes]


def write(root: Path, *, mask: str = "label", has_classes: bool = True) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        images, masks = columns(split)
        pq.write_table(pa.table({"image": images, mask: masks}), root / f"{split}-0.parquet")
    if has_classes:
        toy_masks.write_classes(root)
    return root


def load(root: Path, **named: str) -> ImageData:
    return datasets.load(str(root), cache_dir=root.parent / "cache", **named)


@pytest.mark.parametrize("mask", ["label", "labels", "annotation", "mask", "segmentation_mask"])
def test_a_column_of_masks_is_read_as_a_folder_of_masks_is(tmp_path: Path, mask: str) -> None:
    found = load(write(tmp_path / "rows", mask=mask))
    wanted = load(toy_masks.write(tmp_path / "toys"))
    assert (found.task, found.classes, found.size) == (SEGMENTATION, wanted.classes, wanted.size)
    assert found.colours == toy_masks.COLOURS
    assert torch.equal(found.val.labels, wanted.val.labels)
    assert torch.equal(found.val.at(slice(6)), wanted.val.at(slice(6)))
    assert len(found.train) + len(found.test) == 12


def test_columns_of_images_and_masks_can_be_named(tmp_path: Path) -> None:
    root = tmp_path / "rows"
    write(root)
    images, masks = columns("train")
    turned = [
        png(np.where(toy_masks.scene(seed)[1] == 1, 2, 0).astype(np.uint8)) for seed in range(12)
    ]
    content = {
        "image": masks,
        "photo": images,
        "label": [0, 1] * 6,
        "mask": masks,
        "coarse": turned,
    }
    pq.write_table(pa.table(content), root / "train-0.parquet")
    (root / "validation-0.parquet").unlink()
    assert load(root).task == "classification"
    assert any("--label-column takes mask" in line for line in load(root).inventory)
    fine = load(root, image_column="photo", label_column="mask")
    coarse = load(root, image_column="photo", label_column="coarse")
    assert fine.key != coarse.key
    assert sorted(set(coarse.train.labels.unique().tolist())) == [0, 2, VOID]
    pixels = np.stack([toy_masks.scene(seed)[0] for seed in range(12)]).transpose(0, 3, 1, 2)
    first = fine.train.at(slice(1))[0, :, 8:56].numpy()
    assert any(np.array_equal(first, image) for image in pixels)


def test_without_a_class_list_ids_are_read_from_the_masks_of_train(tmp_path: Path) -> None:
    assert load(write(tmp_path / "rows", has_classes=False)).classes == ("0", "1", "2", "9")


def test_rows_and_splits_without_a_mask_are_left_out(tmp_path: Path) -> None:
    root = write(tmp_path / "rows")
    images, masks = columns("train")
    masks[3], masks[5] = None, {"bytes": None, "path": "x"}
    pq.write_table(pa.table({"image": images, "label": masks}), root / "train-0.parquet")
    bare = pa.table({"image": images[:4], "label": pa.array([None] * 4, pa.binary())})
    pq.write_table(bare, root / "test.parquet")
    data = load(root)
    assert len(data.train) + len(data.test) == 10
    rows = "Left out: 2 rows without a mask (null) (train-0.parquet:3, train-0.parquet:5)"
    assert rows in data.inventory
    assert "Left out: test, since none of its 4 rows has a mask" in data.inventory
    none = pa.table({"image": images[:4], "label": pa.array([None] * 4, pa.binary())})
    pq.write_table(none, root / "train-0.parquet")
    with pytest.raises(DataError, match="no row of train has a mask in 'label'"):
        load(root)


def cut(ids: np.ndarray) -> np.ndarray:
    return ids[:-1]


Change = Callable[[np.ndarray], np.ndarray]
FLAWS: dict[str, tuple[Change, str, tuple[str, ...]]] = {
    "id": (
        lambda ids: np.where(ids == 1, 77, ids).astype(np.uint8),
        "PNG",
        ("train-0.parquet:3", "77", "0 ground, 1 box, 2 disc, 9 void"),
    ),
    "size": (cut, "PNG", ("train-0.parquet:3", "47 x 64", "48 x 64")),
    "16 bits": (lambda ids: ids.astype(np.uint16), "PNG", ("train-0.parquet:3", "8 bits")),
    "jpeg": (lambda ids: ids, "JPEG", ("train-0.parquet:3", "JPEG", "PNG")),
    "colour": (
        lambda ids: np.full((*ids.shape, 3), 3, np.uint8),
        "PNG",
        ("train-0.parquet:3", "(3, 3, 3)", "(60, 60, 60) ground"),
    ),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_what_is_wrong_with_a_mask_is_named_by_its_row(tmp_path: Path, flaw: str) -> None:
    root = write(tmp_path / "rows")
    change, kind, words = FLAWS[flaw]
    images, masks = columns("train")
    masks[3] = png(change(toy_masks.scene(3)[1]), kind)
    pq.write_table(pa.table({"image": images, "label": masks}), root / "train-0.parquet")
    with pytest.raises(DataError) as error:
        load(root)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_masks_in_colours_need_a_table_and_all_files_hold_masks(tmp_path: Path) -> None:
    root = write(tmp_path / "rows", has_classes=False)
    images, masks = columns("train")
    masks[3] = png(np.full((48, 64, 3), 3, np.uint8))
    pq.write_table(pa.table({"image": images, "label": masks}), root / "train-0.parquet")
    with pytest.raises(DataError, match=r"train-0.parquet:3: a mask in colours; .*classes.json"):
        load(root)
    pq.write_table(pa.table({"image": images, "label": [0] * 12}), root / "validation-0.parquet")
    with pytest.raises(
        DataError, match=r"validation-0.parquet: column 'label' holds int64, but enc"
    ):
        load(root)
