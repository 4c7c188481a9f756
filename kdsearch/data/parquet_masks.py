"""Masks in Parquet and Arrow files: a column of encoded masks with a column of images.

They are read as the masks of folders are: by id, with the names and colours of a `classes.json`
in the same folder, or with the ids in train as names. A row without a mask is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdsearch.data.base import SEGMENTATION, Sample, Source
from kdsearch.data.mask_table import CLASSES, Table, table_in, table_of
from kdsearch.data.masks import MaskFile, ids_of
from kdsearch.data.tables import Columns, holds_encoded, images_of, schema_of
from kdsearch.errors import DataError


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows with a mask of a split's files, read in batches at every iteration."""

    files: Sequence[Columns]
    table: Table

    def __iter__(self) -> Iterator[Sample]:
        for file in self.files:
            rows = zip(_masks(file), images_of(file.path, file.image), strict=True)
            for row, ((mask, where), image) in enumerate(rows):
                if mask:
                    label = MaskFile(mask, self.table, where)
                    yield Sample(name=f"{file.name}:{row}", label=label, content=image)


def source_of(
    root: Path,
    files: Mapping[str, Sequence[Columns]],
    *,
    left_out: Mapping[str, Sequence[str]],
    notes: Sequence[str],
) -> Source:
    """Return the source of files by split. left_out, notes: see Source. Raises DataError."""
    empty = {split: [_empty(file) for file in listed] for split, listed in files.items()}
    counts = {split: sum(count for _, count in found) for split, found in empty.items()}
    missing = {split: [row for rows, _ in found for row in rows] for split, found in empty.items()}
    hidden = [split for split in files if len(missing[split]) == counts[split]]
    if "train" in hidden:
        raise DataError(f"{root}: no row of train has a mask in {files['train'][0].label!r}")
    shown = {split: listed for split, listed in files.items() if split not in hidden}
    list_file = (root if root.is_dir() else root.parent) / CLASSES
    masks = (mask for file in files["train"] for mask in _masks(file) if mask[0])
    given = list_file.is_file()
    table = table_in(list_file) if given else table_of(ids_of(masks, list_file), root)
    lines = [
        f"Left out: {split}, since none of its {counts[split]:,} rows has a mask"
        for split in hidden
    ]
    rows = [row for split in shown for row in missing[split]]
    reasons = {**left_out, "rows without a mask (null)": rows}
    return Source(
        name=root.resolve().stem,
        task=SEGMENTATION,
        classes=table.names,
        splits={split: _Rows(listed, table) for split, listed in shown.items()},
        content=[
            ("classes", table.described()),
            *sorted((file.name, file.path) for listed in shown.values() for file in listed),
            *(("columns", f"{f.image} {f.label}".encode()) for f in files["train"][:1]),
        ],
        is_padded=True,
        colours=table.shown,
        left_out={reason: names for reason, names in reasons.items() if names},
        notes=[*lines, *notes],
    )


def _empty(file: Columns) -> tuple[list[str], int]:
    """Return the rows without a mask, and the number of rows."""
    missing, count = [], 0
    for row, (mask, _) in enumerate(_masks(file)):
        count += 1
        if not mask:
            missing.append(f"{file.name}:{row}")
    return missing, count


def _masks(file: Columns) -> Iterator[tuple[bytes, str]]:
    """Yield the mask of each row, empty where it is null, and the row's name in messages."""
    if not holds_encoded(schema_of(file.path), file.label):
        kind = schema_of(file.path).field(file.label).type
        raise DataError(
            f"{file.path}: column {file.label!r} holds {kind}, but encoded masks in the first file "
            "of train"
        )
    for row, mask in enumerate(images_of(file.path, file.label)):
        yield mask, f"{file.path}:{row}"
