"""Masks in Parquet and Arrow files: a column of encoded masks with a column of images.

They are read as the masks of folders are: by id, with the names and colours of a `classes.json`
in the same folder, or with the ids in train as names. A row without a mask is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from kdsearch.data.base import SEGMENTATION, Source
from kdsearch.data.mask_table import CLASSES, table_in, table_of
from kdsearch.data.masks import MaskFile, ids_of
from kdsearch.data.tables import (
    Columns,
    Labels,
    Rows,
    by_labels,
    content_of,
    holds_encoded,
    images_of,
    schema_of,
)
from kdsearch.errors import DataError


def source_of(
    root: Path,
    files: Mapping[str, Sequence[Columns]],
    *,
    left_out: Mapping[str, Sequence[str]],
    notes: Sequence[str],
) -> Source:
    """Return the source of files by split. left_out, notes: see Source. Raises DataError."""
    checked = {split: [_checked(file) for file in own] for split, own in files.items()}
    shown, missing, lines = by_labels(root, checked, "a mask")
    list_file = (root if root.is_dir() else root.parent) / CLASSES
    masks = (mask for file in files["train"] for mask in _masks(file) if mask[0])
    given = list_file.is_file()
    table = table_in(list_file) if given else table_of(ids_of(masks, list_file), root)
    reasons = {**left_out, "rows without a mask (null)": missing}

    def labels(file: Columns) -> Iterator[MaskFile | None]:
        for mask, where in _masks(file):
            yield MaskFile(mask, table, where) if mask else None

    return Source(
        name=root.resolve().stem,
        task=SEGMENTATION,
        classes=table.names,
        splits={split: Rows(own, labels) for split, own in shown.items()},
        content=[
            ("classes", table.described()),
            *content_of(shown),
            *(("columns", f"{f.image} {f.label}".encode()) for f in files["train"][:1]),
        ],
        is_padded=True,
        colours=table.shown,
        left_out={reason: names for reason, names in reasons.items() if names},
        notes=[*lines, *notes],
    )


def _checked(file: Columns) -> Labels:
    known = [bool(mask) for mask, _ in _masks(file)]
    return Labels(file.path, file.name, file.image, file.label, known)


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
