"""Segmentation in the layout of ADE20K's benchmark: images and annotations of training, validation.

In its masks 0 is void and class k has the id k, from 1. These are ADE20K's where its lists,
`objectInfo150.txt` or `sceneCategories.txt`, lie there, or where the masks of training hold the ids
0 to 150, all of them. In any other such folder 0 is a class, with a note. A `classes.json`
states the ids itself: `masks` reads that folder.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from kdsearch.data import masks
from kdsearch.data.base import VOID, Source
from kdsearch.data.mask_table import CLASSES, Table, table_of
from kdsearch.errors import DataError

_INFO, _SCENES = "objectInfo150.txt", "sceneCategories.txt"
_IMAGES, _MASKS, _TRAIN = "images", "annotations", "training"
_COUNT = 150


def is_layout(root: Path) -> bool:
    """Return whether a folder has the folders of ADE20K, and no classes.json."""
    has_folders = all((root / part / _TRAIN).is_dir() for part in (_IMAGES, _MASKS))
    return has_folders and masks.is_layout(root) and not (root / CLASSES).is_file()


def read(root: Path) -> Source:
    """Return training and validation; classes have the names in objectInfo150.txt, or their ids.

    Raises DataError for images without a mask and a damaged list.
    """
    pairs = masks.pairs_in(root)
    if (root / _INFO).is_file():
        names, why = _names(root / _INFO), f"{_INFO} is there"
    elif (root / _SCENES).is_file():
        names, why = _numbers(), f"{_SCENES} is there"
    elif (ids := masks.ids_in(pairs["train"], root)) == {*range(_COUNT + 1)}:
        names, why = _numbers(), f"its masks hold all ids from 0 to {_COUNT}"
    else:
        note = (
            f"In its masks 0 is a class; if 0 is void, as in ADE20K, add {_INFO}, or a {CLASSES} "
            'with "ignore_index": 0'
        )
        return masks.source_of(root, pairs, table_of(ids, root), notes=[note])
    note = f"Read as ADE20K, since {why}: 0 is void, the classes are 1 to {len(names)}"
    table = Table(tuple(names.values()), {0: VOID} | {n: i for i, n in enumerate(names)}, {})
    return masks.source_of(root, pairs, table, notes=[note])


def _numbers() -> dict[int, str]:
    return {number: str(number) for number in range(1, _COUNT + 1)}


def _names(file: Path) -> dict[int, str]:
    """Return the name of each id: the first of its synonyms, or all where that is another's too."""
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines[1:] if line.strip()]
    wanted = [str(number) for number in range(1, len(rows) + 1)]
    if not rows or [row[0].strip() for row in rows] != wanted or any(len(r) < 2 for r in rows):
        raise DataError(
            f"{file}: expected a line of titles, then a line for each class: its id, from 1 "
            "without a gap, and its name in the last of the columns, which tabs divide"
        )
    full = [row[-1].strip() for row in rows]
    first = [name.partition(",")[0].strip() for name in full]
    seen = Counter(first)
    return {
        number: short if seen[short] == 1 else name
        for number, (short, name) in enumerate(zip(first, full, strict=True), 1)
    }
