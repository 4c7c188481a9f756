"""Boxes in Parquet files are read in the forms of the Hugging Face Hub, and mistakes are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import detection_data
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import kdsearch.data as datasets
from kdsearch.data.base import CLASSIFICATION, ImageData
from kdsearch.errors import DataError

SMALL = {"train": 3, "val": 2, "test": 2}
Rows = list[Any]


def load(root: Path, **columns: str) -> ImageData:
    return datasets.load(str(root), cache_dir=root.parent / "cache", **columns)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return detection_data.write(tmp_path / "shapes", "parquet", splits=SMALL)


def edit(root: Path, split: str, change: Callable[[pa.Table], pa.Table]) -> None:
    file = root / f"{split}-00000-of-00001.parquet"
    pq.write_table(change(pq.read_table(file)), file)


def with_rows(rows: Rows, kind: pa.DataType | None = None) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        place = table.column_names.index("objects")
        given = pa.array(rows, kind or table.schema.field("objects").type)
        return table.set_column(place, "objects", given)

    return change


def test_a_struct_of_lists(root: Path) -> None:
    data = load(root)
    detection_data.check(data, SMALL)
    assert data.classes == detection_data.CLASSES
    assert "Boxes in 'objects' are read as x, y, width and height in pixels" in data.inventory


@pytest.mark.parametrize("key", ["category", "category_id", "label", "categories"])
@pytest.mark.parametrize("is_named", [False, True])
def test_a_list_of_structs_with_classes_as_text(root: Path, key: str, is_named: bool) -> None:
    for split in SMALL:
        made = detection_data.scenes(SMALL)[split]
        rows = [
            [
                {"bbox": [x1, y1, x2 - x1, y2 - y1]} | {key: detection_data.CLASSES[label]}
                for x1, y1, x2, y2, label in boxes
            ]
            for _, boxes in made
        ]
        kind = pa.list_(pa.struct({"bbox": pa.list_(pa.float64()), key: pa.string()}))
        feature = [{"bbox": {"_type": "List"}, key: {"dtype": "string", "_type": "Value"}}]
        text = json.dumps({"info": {"features": {"objects": feature}}})
        metadata = {"huggingface": text} if is_named else None
        edit(
            root,
            split,
            lambda table, rows=rows, kind=kind, metadata=metadata: with_rows(rows, kind)(
                table
            ).replace_schema_metadata(metadata),
        )
    data = load(root)
    assert data.classes == ("disc", "ring", "square")
    detection_data.check(data, SMALL)


def test_a_row_without_objects_shows_none_and_a_null_has_no_label(root: Path) -> None:
    given: Rows = [{"bbox": [[1, 2, 30, 40]], "category": [2]}, {"bbox": [], "category": []}, None]
    edit(root, "train", with_rows(given))
    edit(root, "test", with_rows([None, None]))
    data = load(root)
    rows = torch.cat([data.train.labels, data.test.labels])[:, 0].numpy()
    labels = [tuple(row) for row in detection_data.in_pixels(rows, data.size).tolist()]
    assert sorted(labels) == [(0, 0, 0, 0, -1), (1, 2, 31, 42, 2)]
    assert "Left out: 1 rows without a label (null) (train-00000-of-00001.parquet:2)" in (
        data.inventory
    )
    assert "Left out: test, since none of its 2 rows has boxes" in data.inventory


def test_crowds_are_ignored_and_stated_sizes_clip(root: Path) -> None:
    rows = [[{"bbox": [100, 2, 40, 40], "category": 1, "iscrowd": crowd}] for crowd in (0, 1, 0)]
    fields = {"bbox": pa.list_(pa.float32()), "category": pa.int64(), "iscrowd": pa.int64()}

    def change(table: pa.Table) -> pa.Table:
        table = with_rows(rows, pa.list_(pa.struct(fields)))(table)
        for side, length in (("width", 128), ("height", 96)):
            table = table.append_column(side, pa.array([length] * 3))
        return table

    edit(root, "train", change)
    data = load(root)
    assert detection_data.in_pixels(data.train.labels[:, 0].numpy(), data.size).tolist() == [
        [100, 2, 128, 42, code] for code in (1.0, -3.0, 1.0)
    ]
    assert any("Clipped: 3 boxes" in line for line in data.inventory)


def test_boxes_beside_classes_need_a_choice(root: Path) -> None:
    for split, count in SMALL.items():
        edit(
            root,
            split,
            lambda table, count=count: table.append_column("label", pa.array([*range(count)])),
        )
    with pytest.raises(DataError, match="--label-column objects or --label-column label"):
        load(root)
    detection_data.check(load(root, label_column="objects"), SMALL)
    edit(root, "train", lambda table: table.replace_schema_metadata(None))
    for split in ("val", "test"):
        edit(root, split, lambda table: table.replace_schema_metadata(None))
    assert load(root, label_column="label").task == CLASSIFICATION


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"bbox": [[1, 2, 3, 4]], "category": [3]}, r"row 1 .* has the class 3, accepted: 0 to 2"),
        ({"bbox": [[1, 2, 3, 4]], "category": [-1]}, "row 1 .* has the class -1"),
        ({"bbox": [[1, 2, 3, 4]], "category": [None]}, "row 1 .* has the class None"),
        ({"bbox": [[1, 2, 3, 4]], "category": [0, 1]}, r"row 1 .* has lists of \[1, 2\] entries"),
        ({"bbox": [None], "category": [0]}, "row 1, object 0 has the bbox None"),
        ({"bbox": [[1, 2, None, 4]], "category": [0]}, "row 1, object 0 has the bbox"),
        ({"bbox": [[5, 2, -3, 4]], "category": [0]}, r"row 1, object 0: the box \(5, 2, 2, 6\)"),
    ],
)
def test_a_wrong_row_is_named(root: Path, row: dict[str, list[Any]], said: str) -> None:
    fine = {"bbox": [[1, 2, 30, 40]], "category": [0]}
    kind = pa.struct({"bbox": pa.list_(pa.list_(pa.float32())), "category": pa.list_(pa.int64())})
    edit(root, "train", with_rows([fine, row, fine], kind))
    with pytest.raises(DataError, match=rf"train-00000-of-00001\.parquet.*{said}"):
        load(root)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"bbox": pa.list_(pa.float32()), "kind": pa.int64()},
            "has no category, .* it has bbox, kind",
        ),
        (
            {"bbox": pa.list_(pa.float32()), "label": pa.float32()},
            "'label' .* holds float; expected",
        ),
        ({"bbox": pa.string(), "category": pa.int64()}, "object 0 has the bbox 'a'"),
    ],
)
def test_a_wrong_column_is_named(root: Path, fields: dict[str, pa.DataType], said: str) -> None:
    value = {"bbox": "a" if fields["bbox"] == pa.string() else [1, 2, 3, 4]}
    rows = [[value | {key: 0 for key in fields if key != "bbox"}]] * 3
    kind = pa.list_(pa.struct(fields))
    edit(root, "train", with_rows(rows, kind))
    with pytest.raises(DataError, match=rf"train-00000-of-00001\.parquet.*{said}"):
        load(root)


def test_boxes_as_shares_of_the_image_are_not_taken_for_pixels(root: Path) -> None:
    rows = [{"bbox": [[0.1, 0.2, 0.3, 0.4]], "category": [0]}] * 3
    edit(root, "train", with_rows(rows))
    with pytest.raises(DataError, match=r"no image of train has a box.*3 boxes narrower or lower"):
        load(root)


def test_boxes_outside_of_an_image_of_unstated_size_are_named(root: Path) -> None:
    rows = [{"bbox": [[200.0, 2.0, 30.0, 40.0]], "category": [0]}] * 3
    edit(root, "train", with_rows(rows))
    with pytest.raises(DataError, match=r"parquet:0: its box 0 \(200, 2, 230, 42\) lies outside"):
        load(root)


def test_rows_keep_their_boxes_over_batches(tmp_path: Path) -> None:
    root = detection_data.write(tmp_path / "shapes", "parquet", splits={**SMALL, "train": 300})
    data = load(root)
    detection_data.check(data, {**SMALL, "train": 300})
    assert not data.train.labels.isnan().any()
