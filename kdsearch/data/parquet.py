"""Parquet and Arrow files as the Hugging Face Hub has them: encoded images, and their classes.

Class names come from the schema's `huggingface` metadata; without it the labels themselves, which
may be integers, text or truth values, are the names. Null and -1 mean that a row has no label.
Labels that are encoded images are masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kdsearch.data import objects, parquet_masks, tables
from kdsearch.data.base import Source
from kdsearch.data.tables import (
    Columns,
    Labels,
    Rows,
    absent,
    by_labels,
    class_names,
    column_of,
    content_of,
    file_name,
    holds_encoded,
    image_column,
    is_text,
    named_column,
    schema_of,
)
from kdsearch.errors import DataError

find = tables.find
_MASKS = ("annotation", "mask", "segmentation_mask")
_LABELS = ("label", "labels", "fine_label", "class", "category", "target", "cls", *_MASKS)


@dataclass(frozen=True, slots=True)
class _File(Labels):
    """One file with its checked labels."""

    names: tuple[str, ...] | None
    values: NDArray[Any]

    @property
    def found(self) -> NDArray[Any]:
        """Return the labels of the rows that have one."""
        return np.compress(self.known, self.values)


def read(root: Path, *, image: str | None = None, label: str | None = None) -> Source:
    """Return the images of a file, or of a folder with at least a train file.

    image, label: names of the columns; None: the first of the usual ones. Raises DataError naming
    file and column for a missing column or an unknown label.
    """
    found = find(root)
    if "train" not in found:
        others = ", ".join(path.name for paths in found.values() for path in paths)
        raise DataError(f"{root}: no file name begins with train, among {others}")
    spare = found.pop("", [])
    left_out = {
        "files that begin with no split": [path.name for path in spare],
        "files that are not here": absent(found),
    }
    boxes = _boxes_column(found["train"][0], label)
    tables = {
        split: [
            Columns(path, file_name(path, root), *_columns(path, image, boxes or label))
            for path in paths
        ]
        for split, paths in found.items()
    }
    if boxes is not None:
        return objects.source_of(root, tables, image=image, left_out=left_out)
    first = tables["train"][0]
    notes = [] if label else list(_choices(first))
    if holds_encoded(schema_of(first.path), first.label):
        return parquet_masks.source_of(root, tables, left_out=left_out, notes=notes)
    by_split = {split: [_inspect(each) for each in listed] for split, listed in tables.items()}
    shown, missing, lines = by_labels(root, by_split, "a label (null or -1)")
    classes, position = _classes(shown)
    left_out["rows without a label (null or -1)"] = missing

    def labels(file: _File) -> Iterator[int | None]:
        for value, is_known in zip(file.values.tolist(), file.known, strict=True):
            yield position[value] if is_known else None

    chosen = [(flag, name) for flag, name in (("image", image), ("label", label)) if name]
    return Source(
        name=root.resolve().stem,
        classes=classes,
        splits={split: Rows(files, labels) for split, files in shown.items()},
        content=[
            *content_of(shown),
            *((f"{column} column", name.encode()) for column, name in chosen),
        ],
        left_out={reason: names for reason, names in left_out.items() if names},
        notes=[*lines, *notes],
    )


def _boxes_column(path: Path, label: str | None) -> str | None:
    """Return the column of boxes, None where the labels are classes. Raises DataError for both."""
    schema = schema_of(path)
    found = objects.BOXES if label is None else label
    if not objects.are_boxes(schema, found):
        return None
    others = [name for name in _LABELS if name in schema.names and name != found]
    if label is None and others:
        raise DataError(
            f"{path}: has boxes in {found!r} and classes in {others[0]!r}; choose one with "
            f"--label-column {found} or --label-column {others[0]}"
        )
    return found


def _choices(table: Columns) -> Iterator[str]:
    """Yield which column the labels are, where others have a usual name."""
    known = schema_of(table.path).names
    others = [
        name
        for name in known
        if name != table.label and (name in _LABELS or name.endswith(("_label", "_class")))
    ]
    if others:
        yield f"Labels are the column {table.label!r}; --label-column takes {' or '.join(others)}"


def _columns(path: Path, image: str | None, label: str | None) -> tuple[str, str]:
    """Return the columns of the images and of the labels. Raises DataError."""
    schema = schema_of(path)
    image = image_column(path, schema, image)
    return image, named_column(path, schema, label, _LABELS, "--label-column")


def _inspect(table: Columns) -> _File:
    path, label = table.path, table.label
    stated = class_names(path, label)
    names = None if stated is None else tuple(_distinct(stated))
    values, known = _labels(path, label, column_of(path, label), names)
    return _File(path, table.name, table.image, label, known.tolist(), names, values)


def _distinct(names: Sequence[str]) -> Iterator[str]:
    """Yield each name, with its number where another class has the same."""
    for number, name in enumerate(names):
        yield name if names.count(name) == 1 else f"{name} ({number})"


def _labels(
    path: Path, column: str, values: pa.ChunkedArray, names: tuple[str, ...] | None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Return the labels [N], integers or text, and which rows have one. Raises DataError."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        values = values.cast(kind.value_type)
        kind = values.type
    known = values.is_valid().to_numpy()
    if is_text(kind) or pa.types.is_boolean(kind):
        return np.array(["" if v is None else str(v) for v in values.to_pylist()]), known
    if not pa.types.is_integer(kind):
        raise DataError(
            f"{path}: column {column!r} holds {kind}; expected one label a row: integers, text or "
            "truth values; --label-column names another column"
        )
    try:
        labels = values.cast(pa.int64()).fill_null(-1).to_numpy()
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: column {column!r} holds no class numbers: {error}") from error
    known = labels != -1
    wrong = labels < -1 if names is None else (labels < -1) | (labels >= len(names))
    if wrong.any():
        row = int(wrong.argmax())
        accepted = "0 and above" if names is None else f"0 to {len(names) - 1}"
        raise DataError(
            f"{path}: column {column!r} is {labels[row]} in row {row}; accepted: {accepted}, and "
            "-1 for no label"
        )
    return labels, known


def _classes(by_split: Mapping[str, Sequence[_File]]) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Return the class names, and the position among them of each label that may occur."""
    first = by_split["train"][0]
    files = [file for split in by_split.values() for file in split]
    for file in files:
        if file.names != first.names:
            raise DataError(f"{file.path}: its class names differ from those in {first.path}")
        if file.values.dtype.kind != first.values.dtype.kind:
            raise DataError(f"{file.path}: its labels are of another type than in {first.path}")
    if first.names is not None:
        return first.names, {value: value for value in range(len(first.names))}
    values = np.unique(np.concatenate([file.found for file in by_split["train"]])).tolist()
    if values == [1] and not all(all(file.known) for file in by_split["train"]):
        raise DataError(
            f"{first.path}: column {first.label!r} holds -1, which means no label, and 1; write 0 "
            "and 1 for two classes"
        )
    for file in files:
        foreign = np.setdiff1d(file.found, values)
        if foreign.size:
            raise DataError(
                f"{file.path}: column {file.label!r} holds {foreign[0]}, which train never does"
            )
    return tuple(map(str, values)), {value: place for place, value in enumerate(values)}
