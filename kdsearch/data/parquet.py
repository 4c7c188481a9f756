"""Parquet files in the Hugging Face layout: an image column of encoded bytes, a label column.

A file's name begins with its split (`train-00000-of-00002.parquet`, `validation.parquet`). Class
names come from the schema's `huggingface` metadata; without it the labels themselves are the names.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kdsearch.data.base import Sample, Source
from kdsearch.errors import DataError

_SPLITS = ("train", "val", "test")  # `valid` and `validation` begin with `val`
_IMAGE_COLUMNS = ("img", "image")
_LABEL_COLUMNS = ("label", "fine_label")
_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """One Parquet file with its checked labels."""

    path: Path
    image: str
    label: str
    names: tuple[str, ...] | None
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of a split's files, read in batches at every iteration."""

    files: Sequence[_File]
    position: dict[int, int]

    def __iter__(self) -> Iterator[Sample]:
        for file in self.files:
            labels = [self.position[value] for value in file.labels.tolist()]
            for row, (label, content) in enumerate(zip(labels, _images(file), strict=True)):
                yield Sample(name=f"{file.path.name}:{row}", label=label, content=content)


def find(root: Path) -> list[Path]:
    """Return the file itself, or the Parquet files of the folder, or else of its `data/`."""
    if root.is_file():
        return [root]
    return sorted(root.glob("*.parquet")) or sorted((root / "data").glob("*.parquet"))


def read(root: Path) -> Source:
    """Return the images of a Parquet file, or of a folder with at least a train file.

    Raises DataError naming file and column for a missing column, a null or an unknown label.
    """
    paths = find(root)
    by_split: dict[str, list[_File]] = {}
    for path in paths:
        split = "train" if root.is_file() else _split(path)
        by_split.setdefault(split, []).append(_inspect(path))
    if "train" not in by_split:
        raise DataError(f"{root}: no train*.parquet among {', '.join(p.name for p in paths)}")
    classes, position = _classes(by_split)
    return Source(
        name=root.resolve().stem,
        classes=classes,
        splits={split: _Rows(by_split[split], position) for split in _SPLITS if split in by_split},
        content=[(path.name, path) for path in paths],
    )


def _split(path: Path) -> str:
    for split in _SPLITS:
        if path.name.lower().startswith(split):
            return split
    raise DataError(f"{path}: the name gives no split; begin it with train, val or test")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error


def _inspect(path: Path) -> _File:
    with _reading(path):
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        image = _column(path, schema, _IMAGE_COLUMNS)
        label = _column(path, schema, _LABEL_COLUMNS)
        kind = schema.field(image).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise DataError(
                f"{path}: column {image!r} holds {kind}; expected encoded images, "
                "as struct<bytes: binary> or binary"
            )
        if not pa.types.is_integer(schema.field(label).type):
            raise DataError(
                f"{path}: column {label!r} holds {schema.field(label).type}; expected integers"
            )
        column = file.read(columns=[label]).column(label)
    if column.null_count:
        row = column.is_null().index(pa.scalar(True)).as_py()
        raise DataError(f"{path}: column {label!r} is null in row {row}")
    names = _class_names(path, schema, label)
    labels = column.to_numpy().astype(np.int64)
    _check_labels(path, label, labels, names)
    return _File(path=path, image=image, label=label, names=names, labels=labels)


def _column(path: Path, schema: pa.Schema, known: tuple[str, ...]) -> str:
    for name in known:
        if name in schema.names:
            return name
    raise DataError(
        f"{path}: no column {' or '.join(map(repr, known))}; it has {', '.join(schema.names)}"
    )


def _class_names(path: Path, schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        names = json.loads(text)["info"]["features"][label].get("names")
        return None if names is None else tuple(str(name) for name in names)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: the schema's 'huggingface' metadata has no info.features.{label}: {error!r}"
        ) from error


def _check_labels(
    path: Path, column: str, labels: NDArray[np.int64], names: tuple[str, ...] | None
) -> None:
    wrong = labels < 0 if names is None else (labels < 0) | (labels >= len(names))
    if wrong.any():
        row = int(wrong.argmax())
        accepted = "0 and above" if names is None else f"0 to {len(names) - 1}"
        raise DataError(
            f"{path}: column {column!r} is {labels[row]} in row {row}; accepted: {accepted}"
        )


def _classes(by_split: dict[str, list[_File]]) -> tuple[tuple[str, ...], dict[int, int]]:
    """Return the class names, and the position among them of each label that may occur."""
    first = by_split["train"][0]
    files = [file for split in by_split.values() for file in split]
    for file in files:
        if file.names != first.names:
            raise DataError(f"{file.path}: its class names differ from those in {first.path}")
    if first.names is not None:
        return first.names, {value: value for value in range(len(first.names))}
    values = np.unique(np.concatenate([file.labels for file in by_split["train"]])).tolist()
    for file in files:
        foreign = np.setdiff1d(file.labels, values)
        if foreign.size:
            raise DataError(
                f"{file.path}: column {file.label!r} holds {foreign[0]}, which train never does"
            )
    return tuple(map(str, values)), {value: place for place, value in enumerate(values)}


def _images(file: _File) -> Iterator[bytes]:
    """Yield each row's encoded image; a null one is empty bytes, which nothing can decode."""
    with _reading(file.path):
        batches = pq.ParquetFile(file.path).iter_batches(batch_size=_ROWS, columns=[file.image])
        for batch in batches:
            column = batch.column(0)
            if pa.types.is_struct(column.type):
                column = column.flatten()[column.type.get_field_index("bytes")]
            yield from (content or b"" for content in column.to_pylist())
