"""Boxes in Parquet and Arrow files, as data sets of the Hugging Face Hub have them.

A row of the column `objects` is a struct of lists or a list of structs: `bbox`, which is x, y,
width and height in pixels, and a class. Class names come from the schema's `huggingface` metadata,
else the classes themselves are the names. A null means that a row has no label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from kdsearch.data.base import DETECTION, Source
from kdsearch.data.boxes import Boxes, Checks, Row, ignored, most_of, require_boxes
from kdsearch.data.sizes import Size
from kdsearch.data.tables import (
    Columns,
    Labels,
    Rows,
    by_labels,
    class_names,
    column_of,
    content_of,
    is_text,
    schema_of,
)
from kdsearch.errors import DataError

BOXES = "objects"
_BOX = "bbox"
_CLASSES = ("category", "category_id", "label", "categories")
_CROWDS = ("iscrowd", "is_crowd")
_FOUR = [True] * 4
_SIDES = ("height", "width")


@dataclass(frozen=True, slots=True)
class _File(Labels):
    """One file. rows: its objects, class by class value; None: no label."""

    names: tuple[str, ...] | None
    rows: Sequence[Mapping[str, Sequence[Any]] | None]
    sizes: Sequence[Size | None]


def are_boxes(schema: pa.Schema, name: str) -> bool:
    """Return whether a column holds objects with boxes."""
    fields = _fields(schema.field(name).type) if name in schema.names else ()
    return _BOX in fields


def _fields(kind: pa.DataType) -> dict[str, pa.DataType]:
    """Return the types of one object's values, in a struct of lists or a list of structs."""
    kind = _of_list(kind)
    fields = list(kind) if pa.types.is_struct(kind) else []
    return {field.name: _of_list(field.type) for field in fields}


def _of_list(kind: pa.DataType) -> pa.DataType:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return kind.value_type if is_list else kind


def source_of(
    root: Path,
    files: Mapping[str, Sequence[Columns]],
    *,
    image: str | None,
    left_out: Mapping[str, Sequence[str]],
) -> Source:
    """Return images and boxes of files by split. image: the column that the user named.

    left_out: see Source. Raises DataError that names file, row and value.
    """
    column = files["train"][0].label
    inspected = {split: [_inspect(file) for file in own] for split, own in files.items()}
    shown, missing, lines = by_labels(root, inspected, "boxes")
    classes, places = _classes(shown, column)
    checks = Checks(root if root.is_dir() else root.parent)
    every = [file for own in shown.values() for file in own]
    boxes = {file.name: [*_rows(file, places, checks)] for file in every}
    train = (row for file in shown["train"] for row in boxes[file.name])
    require_boxes(root, (len(row or ()) for row in train), checks)
    most = most_of(row for rows in boxes.values() for row in rows)

    def labels(file: _File) -> Iterator[Boxes | None]:
        for rows, stated in zip(boxes[file.name], file.sizes, strict=True):
            yield None if rows is None else Boxes(rows, most, stated)

    reasons = {**left_out, "rows without a label (null)": missing, **checks.left_out}
    return Source(
        name=root.resolve().stem,
        task=DETECTION,
        classes=classes,
        splits={split: Rows(own, labels) for split, own in shown.items()},
        content=[
            *content_of(shown),
            ("boxes column", column.encode()),
            *([("image column", image.encode())] if image else []),
        ],
        is_padded=True,
        left_out={reason: names for reason, names in reasons.items() if names},
        notes=[
            f"Boxes in {column!r} are read as x, y, width and height in pixels",
            *lines,
            *checks.notes,
        ],
    )


def _inspect(file: Columns) -> _File:
    path, column = file.path, file.label
    schema = schema_of(path)
    if not are_boxes(schema, column):
        raise DataError(f"{path}: has no column {column!r} of objects with {_BOX!r}")
    fields = _fields(schema.field(column).type)
    key = next((key for key in _CLASSES if key in fields), None)
    if key is None:
        raise DataError(
            f"{path}: column {column!r} has no {', '.join(_CLASSES[:-1])} or {_CLASSES[-1]}; it "
            f"has {', '.join(fields)}"
        )
    if not (pa.types.is_integer(fields[key]) or is_text(fields[key])):
        raise DataError(
            f"{path}: {key!r} in column {column!r} holds {fields[key]}; expected integers or text"
        )
    crowd = next((key for key in _CROWDS if key in fields), None)
    keys = {_BOX: _BOX, "class": key} | ({"crowd": crowd} if crowd else {})
    rows = [_lists(row, keys) for row in column_of(path, column).to_pylist()]
    for row, content in enumerate(rows):
        lengths = {len(values) for values in (content or {}).values()}
        if len(lengths) > 1:
            raise DataError(
                f"{path}: row {row} of {column!r} has lists of {sorted(lengths)} entries"
            )
    sizes: list[Size | None] = [None] * len(rows)
    if all(side in schema.names for side in _SIDES):
        pairs = zip(*(column_of(path, side).to_pylist() for side in _SIDES), strict=True)
        sizes = [_size(path, row, pair) for row, pair in enumerate(pairs)]
    stated = class_names(path, column, key)
    names = None if stated is None else tuple(stated)
    known = [row is not None for row in rows]
    return _File(path, file.name, file.image, column, known, names, rows, sizes)


def _lists(row: Any, keys: Mapping[str, str]) -> dict[str, list[Any]] | None:
    """Return the objects of a row as lists by what they are; None where the row is null."""
    if row is None:
        return None
    if isinstance(row, list):
        return {what: [(entry or {}).get(key) for entry in row] for what, key in keys.items()}
    return {what: row[key] or [] for what, key in keys.items()}


def _size(path: Path, row: int, sides: tuple[Any, Any]) -> Size | None:
    if sides == (None, None):
        return None
    if not all(isinstance(side, int) and side > 0 for side in sides):
        raise DataError(
            f"{path}: row {row} has width {sides[1]!r} and height {sides[0]!r}, not pixels"
        )
    return sides


def _classes(
    by_split: Mapping[str, Sequence[_File]], column: str
) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Return the class names, and the position among them of each class that may occur."""
    first = by_split["train"][0]
    files = [file for own in by_split.values() for file in own]
    for file in files:
        if file.names != first.names:
            raise DataError(f"{file.path}: its class names differ from those in {first.path}")
    if first.names is not None:
        known: list[Any] = [*range(len(first.names))]
    else:
        known = sorted({value for file in by_split["train"] for value in _values(file)}, key=_order)
    labels = {value: place for place, value in enumerate(known)}
    for file in files:
        for row, content in enumerate(file.rows):
            for value in (content or {}).get("class", ()):
                if isinstance(value, bool) or value not in labels:
                    accepted = "which train never does"
                    if first.names is not None:
                        accepted = f"accepted: 0 to {len(known) - 1}"
                    raise DataError(
                        f"{file.path}: row {row} of {column!r} has the class {value!r}, {accepted}"
                    )
    return first.names or tuple(map(str, known)), labels


def _values(file: _File) -> Iterator[Any]:
    """Yield the classes of all objects that have one."""
    for content in file.rows:
        yield from (value for value in (content or {}).get("class", ()) if value is not None)


def _order(value: Any) -> tuple[bool, Any]:
    return isinstance(value, str), value


def _rows(file: _File, labels: Mapping[Any, int], checks: Checks) -> Iterator[list[Row] | None]:
    """Yield the checked boxes of each row, None where it is null."""
    for row, (content, stated) in enumerate(zip(file.rows, file.sizes, strict=True)):
        if content is None:
            yield None
            continue
        found: list[Row] = []
        crowds = content.get("crowd", [False] * len(content[_BOX]))
        objects = zip(content[_BOX], content["class"], crowds, strict=True)
        for place, (box, value, is_crowd) in enumerate(objects):
            where = f"{file.name}: row {row}, object {place}"
            if not isinstance(box, list) or [type(side) in (int, float) for side in box] != _FOUR:
                raise DataError(
                    f"{checks.root / where} has the {_BOX} {box!r:.80}; expected [x, y, width, "
                    "height]"
                )
            x, y, width, height = box
            kept = checks.kept(where, (x, y, x + width, y + height), stated)
            if kept is not None:
                found.append((*kept, ignored(labels[value]) if is_crowd else labels[value]))
        yield found
