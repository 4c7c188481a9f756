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
from kdsearch.data.base import Sample, Source
from kdsearch.data.tables import (
    Columns,
    absent,
    column_of,
    file_name,
    holds_encoded,
    image_column,
    images_of,
    is_text,
    named_column,
    schema_of,
)
from kdsearch.documents import parse_json
from kdsearch.errors import DataError

find = tables.find
_MASKS = ("annotation", "mask", "segmentation_mask")
_LABELS = ("label", "labels", "fine_label", "class", "category", "target", "cls", *_MASKS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """One file with its checked labels. name: below the root. known: the rows with a label."""

    path: Path
    name: str
    image: str
    label: str
    names: tuple[str, ...] | None
    labels: NDArray[Any]
    known: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Rows:
    """The labelled rows of a split's files, read in batches at every iteration."""

    files: Sequence[_File]
    position: Mapping[Any, int]

    def __iter__(self) -> Iterator[Sample]:
        for file in self.files:
            contents = images_of(file.path, file.image)
            rows = zip(file.labels.tolist(), file.known.tolist(), contents, strict=True)
            for row, (label, is_known, content) in enumerate(rows):
                if is_known:
                    label = self.position[label]
                    yield Sample(name=f"{file.name}:{row}", label=label, content=content)


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
    boxes = _boxes_column(found["train"][0], label)
    if boxes is not None:
        return objects.read(root, found, image=image, column=boxes, spare=spare)
    left_out = {
        "files that begin with no split": [path.name for path in spare],
        "files that are not here": absent(found),
    }
    tables = {
        split: [
            Columns(path, file_name(path, root), *_columns(path, image, label)) for path in paths
        ]
        for split, paths in found.items()
    }
    first = tables["train"][0]
    notes = [] if label else list(_choices(first))
    if holds_encoded(schema_of(first.path), first.label):
        return parquet_masks.source_of(root, tables, left_out=left_out, notes=notes)
    by_split = {split: [_inspect(each) for each in listed] for split, listed in tables.items()}
    hidden = {
        split: sum(len(file.labels) for file in files)
        for split, files in by_split.items()
        if not any(file.known.any() for file in files)
    }
    if "train" in hidden:
        raise DataError(f"{root}: no row of train has a label in {by_split['train'][0].label!r}")
    shown = {split: files for split, files in by_split.items() if split not in hidden}
    classes, position = _classes(shown)
    missing = [
        f"{file.name}:{row}"
        for files in shown.values()
        for file in files
        for row in (~file.known).nonzero()[0].tolist()
    ]
    left_out["rows without a label (null or -1)"] = missing
    chosen = [(flag, name) for flag, name in (("image", image), ("label", label)) if name]
    return Source(
        name=root.resolve().stem,
        classes=classes,
        splits={split: _Rows(files, position) for split, files in shown.items()},
        content=[
            *sorted((file.name, file.path) for files in shown.values() for file in files),
            *((f"{column} column", name.encode()) for column, name in chosen),
        ],
        left_out={reason: names for reason, names in left_out.items() if names},
        notes=[*_hidden(hidden), *notes],
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


def _hidden(splits: Mapping[str, int]) -> Iterator[str]:
    for split, count in splits.items():
        yield f"Left out: {split}, since none of its {count:,} rows has a label (null or -1)"


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
    names = _class_names(path, schema_of(path), label)
    labels, known = _labels(path, label, column_of(path, label), names)
    return _File(
        path=path,
        name=table.name,
        image=table.image,
        label=label,
        names=names,
        labels=labels,
        known=known,
    )


def _class_names(path: Path, schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        names = parse_json(text)["info"]["features"][label].get("names")
        return None if names is None else tuple(_distinct([str(name) for name in names]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: the schema's 'huggingface' metadata has no info.features.{label}: {error!r}"
        ) from error


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


def _classes(by_split: dict[str, list[_File]]) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Return the class names, and the position among them of each label that may occur."""
    first = by_split["train"][0]
    files = [file for split in by_split.values() for file in split]
    for file in files:
        if file.names != first.names:
            raise DataError(f"{file.path}: its class names differ from those in {first.path}")
        if file.labels.dtype.kind != first.labels.dtype.kind:
            raise DataError(f"{file.path}: its labels are of another type than in {first.path}")
    if first.names is not None:
        return first.names, {value: value for value in range(len(first.names))}
    seen = [np.unique(file.labels[file.known]) for file in by_split["train"]]
    values = np.unique(np.concatenate(seen)).tolist()
    if values == [1] and not all(file.known.all() for file in by_split["train"]):
        raise DataError(
            f"{first.path}: column {first.label!r} holds -1, which means no label, and 1; write 0 "
            "and 1 for two classes"
        )
    for file in files:
        foreign = np.setdiff1d(file.labels[file.known], values)
        if foreign.size:
            raise DataError(
                f"{file.path}: column {file.label!r} holds {foreign[0]}, which train never does"
            )
    return tuple(map(str, values)), {value: place for place, value in enumerate(values)}
