"""Parquet and Arrow files: where they lie in a folder, their columns, and their rows in batches.

A file belongs to the split that its name begins with (`train-00000-of-00002.parquet`), or its
folder (`default/train/0000.parquet`, and what `datasets` saves to disk).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Generic, TypeVar

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from kdsearch.data.base import Label, Sample
from kdsearch.data.folder import SPLITS
from kdsearch.documents import parse_json
from kdsearch.errors import DataError, did_you_mean

_SUFFIXES = (".parquet", ".arrow")
_LABELLED = ("train", "val", "test")
_SHARD = re.compile(r"(.*-)(\d{5})-of-(\d{5})(.*)")
_ROWS = 256
_IMAGES = ("img", "image", "jpg", "jpeg", "png", "webp")


@dataclass(frozen=True, slots=True)
class Columns:
    """One file and two of its columns. name: of the file, below the root."""

    path: Path
    name: str
    image: str
    label: str


@dataclass(frozen=True, slots=True)
class Labels(Columns):
    """One file, and which of its rows have a label."""

    known: Sequence[bool]


File = TypeVar("File", bound=Columns)
Checked = TypeVar("Checked", bound=Labels)


@dataclass(frozen=True, slots=True)
class Rows(Generic[File]):
    """The labelled rows of a split's files, read in batches at every iteration.

    labels: returns the label of each row of a file, None for a row without.
    """

    files: Sequence[File]
    labels: Callable[[File], Iterable[Label | None]]

    def __iter__(self) -> Iterator[Sample]:
        for file in self.files:
            rows = zip(self.labels(file), images_of(file.path, file.image), strict=True)
            for row, (label, content) in enumerate(rows):
                if label is not None:
                    yield Sample(name=f"{file.name}:{row}", label=label, content=content)


def by_labels(
    root: Path, files: Mapping[str, Sequence[Checked]], what: str
) -> tuple[dict[str, Sequence[Checked]], list[str], list[str]]:
    """Return the splits with labels, the rows of these without one, and a note on each other split.

    files: of each split. what: their labels, in messages. Raises DataError where train has none.
    """
    shown = {split: own for split, own in files.items() if any(any(file.known) for file in own)}
    if "train" not in shown:
        raise DataError(f"{root}: no row of train has {what} in {files['train'][0].label!r}")
    missing, notes = [], []
    for split, own in files.items():
        rows = [(file.name, row, known) for file in own for row, known in enumerate(file.known)]
        if split in shown:
            missing += [f"{name}:{row}" for name, row, is_known in rows if not is_known]
        else:
            notes.append(f"Left out: {split}, since none of its {len(rows):,} rows has {what}")
    return shown, missing, notes


def content_of(files: Mapping[str, Sequence[Columns]]) -> list[tuple[str, Path]]:
    """Return name and path of the files of all splits, by name."""
    return sorted((file.name, file.path) for own in files.values() for file in own)


def is_table(path: Path) -> bool:
    """Return whether a path is named as a Parquet or Arrow file, without the caches of datasets."""
    return path.suffix in _SUFFIXES and not path.name.startswith((".", "cache-"))


def find(root: Path) -> dict[str, list[Path]]:
    """Return the files of each split, in the order of their names; '': of no split.

    root: one file of train, or a folder: its files, or those of its `data/`, or of its folders of
    splits. Empty where there are none.
    """
    if root.is_file():
        return {"train": [root]}
    for folder in (root, root / "data"):
        files = _files(folder)
        if files and {path.suffix for path in files} == {".arrow"}:
            return {"train": files}  # what `datasets` saves of one split
        if files:
            return _by_split([(path.stem, path) for path in files])
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    return _by_split(
        [
            (folder.name, path)
            for folder in folders
            if _split(folder.name)
            for path in _files(folder)
        ]
    )


def _files(folder: Path) -> list[Path]:
    return sorted(filter(is_table, folder.iterdir())) if folder.is_dir() else []


def _by_split(named: list[tuple[str, Path]]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for name, path in named:
        found.setdefault(_split(name), []).append(path)
    return {split: found[split] for split in (*_LABELLED, "") if split in found}


def absent(found: Mapping[str, Sequence[Path]]) -> list[str]:
    """Return the files that others count, as `train-00000-of-00002`, and that are not here."""
    shards: dict[tuple[str, str, str], set[int]] = {}
    for path in chain.from_iterable(found.values()):
        if match := _SHARD.fullmatch(path.name):
            before, number, count, after = match.groups()
            shards.setdefault((before, count, after), set()).add(int(number))
    return [
        f"{before}{number:05}-of-{count}{after}"
        for (before, count, after), there in sorted(shards.items())
        for number in range(int(count))
        if number not in there
    ]


def _split(name: str) -> str:
    """Return the split of `train-00000-of-00002`, `train_1` or `dev`, '' for `train_small`."""
    first = re.split(r"[-.]|_?\d", name.lower())[0]
    return next((split for split in _LABELLED if first in SPLITS[split]), "")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what is wrong with a file into DataError."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        kind = "Arrow" if path.suffix == ".arrow" else "Parquet"
        raise DataError(f"{path}: cannot be read as {kind}: {error}") from error


def schema_of(path: Path) -> pa.Schema:
    """Return the columns of a file, and its metadata. Raises DataError."""
    with reading(path):
        if path.suffix == ".arrow":
            return _stream(path).schema
        return pq.ParquetFile(path).schema_arrow


def class_names(path: Path, *keys: str) -> list[str] | None:
    """Return the class names in the schema's `huggingface` metadata, None where there are none.

    keys: the column, then the key of the classes in a column of objects. Raises DataError.
    """
    text = (schema_of(path).metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        feature = parse_json(text)["info"]["features"]
        for key in keys:
            feature = feature[key]
            while isinstance(feature, list) or "feature" in feature:  # what it is a list of
                feature = feature[0] if isinstance(feature, list) else feature["feature"]
        names = feature.get("names")
        return None if names is None else [str(name) for name in names]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise DataError(
            f"{path}: the schema's 'huggingface' metadata has no info.features."
            f"{' with '.join(keys)}: {error!r}"
        ) from error


def column_of(path: Path, name: str) -> pa.ChunkedArray:
    """Return one column. Raises DataError."""
    with reading(path):
        if path.suffix == ".arrow":
            return _stream(path).read_all().column(name)
        return pq.ParquetFile(path).read(columns=[name]).column(name)


def batches_of(path: Path, name: str) -> Iterator[pa.Array]:
    """Yield one column in batches of rows. Raises DataError."""
    with reading(path):
        if path.suffix == ".arrow":
            for batch in _stream(path):
                yield batch.column(batch.schema.get_field_index(name))
            return
        for batch in pq.ParquetFile(path).iter_batches(batch_size=_ROWS, columns=[name]):
            yield batch.column(0)


def named_column(
    path: Path, schema: pa.Schema, given: str | None, usual: Sequence[str], flag: str
) -> str:
    """Return the column that the user named by a flag, else the first usual one there is."""
    if given is not None and given not in schema.names:
        raise DataError(
            f"{path}: no column {given!r}{did_you_mean(given, schema.names)} ({flag}); "
            f"it has {', '.join(schema.names)}"
        )
    found = given or next((name for name in usual if name in schema.names), None)
    if found is None:
        raise DataError(
            f"{path}: no column {', '.join(usual[:-1])} or {usual[-1]}; it has "
            f"{', '.join(schema.names)}; name it with {flag}"
        )
    return found


def image_column(path: Path, schema: pa.Schema, given: str | None) -> str:
    """Return the column of encoded images. Raises DataError where it holds something else."""
    name = named_column(path, schema, given, _IMAGES, "--image-column")
    kind = _bytes_type(schema, name)
    is_empty = pa.types.is_null(kind)  # reading a row states the reason
    if not (is_empty or holds_encoded(schema, name)):
        hint = "; the files that it names are not read" if is_text(kind) else ""
        raise DataError(
            f"{path}: column {name!r} holds {kind}; expected encoded images, "
            f"as struct<bytes: binary> or binary{hint}"
        )
    return name


def holds_encoded(schema: pa.Schema, name: str) -> bool:
    """Return whether a column holds encoded images."""
    kind = _bytes_type(schema, name)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _bytes_type(schema: pa.Schema, name: str) -> pa.DataType:
    kind = schema.field(name).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return kind.field("bytes").type
    return kind


def images_of(path: Path, name: str) -> Iterator[bytes]:
    """Yield each row's encoded image; a null one is empty bytes, which nothing can decode."""
    for column in batches_of(path, name):
        paths = None
        if pa.types.is_struct(column.type):
            parts = dict(zip((field.name for field in column.type), column.flatten(), strict=True))
            column, paths = parts["bytes"], parts.get("path")
        if paths is not None and column.null_count == len(column) > paths.null_count:
            named = next(given for given in paths.to_pylist() if given is not None)
            raise DataError(
                f"{path}: column {name!r} has no bytes, only paths such as {named!r}; "
                "write the file again with its images embedded (datasets: `embed_table_storage`)"
            )
        yield from (content or b"" for content in column.to_pylist())


def is_text(kind: pa.DataType) -> bool:
    """Return whether a column holds texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def file_name(path: Path, root: Path) -> str:
    """Return a name of a file that is unique within the source at root."""
    is_in_split = path.parent not in (root, root / "data")
    return f"{path.parent.name}/{path.name}" if is_in_split and path != root else path.name


def _stream(path: Path) -> pa.RecordBatchReader:
    """Open an Arrow file, of the stream or the file format, without copying it."""
    source = pa.memory_map(str(path))
    try:
        return pa.ipc.open_stream(source)
    except pa.ArrowInvalid:
        source.seek(0)
        opened = pa.ipc.open_file(source)
        return pa.Table.from_batches(
            [opened.get_batch(i) for i in range(opened.num_record_batches)], opened.schema
        ).to_reader()
