"""The classes that a teacher's head knows, by name, and which of them are the data's.

A teacher may know all classes of the data, some of them, or none: see `Known`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from torch import nn

from kdsearch.documents import parse_json
from kdsearch.errors import SpecError
from kdsearch.models.model import Known

Names: TypeAlias = Sequence[tuple[str, ...]]  # of each class, all that it is called
_IMAGENET = 1000
_SHOWN = 5


def read_classes(path: Path, *, least: int = 2) -> tuple[str, ...]:
    """Return the classes of a teacher in the order of its head, `least` or more.

    The file: JSON (a list, index to name, or name to index), or text with one class a line.
    Raises SpecError.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = parse_json(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise SpecError(f"--teacher-classes {path} cannot be read: {error}") from error
    names = in_order(found)
    if len(names) < least or len(set(names)) < len(names):
        many = {1: "one name", 2: "two names"}[least]
        raise SpecError(
            f"--teacher-classes {path}: expected {many} or more, each once: a JSON list, "
            '{"0": "cat", ...} or {"cat": 0, ...}, or text with one name a line'
        )
    return names


def in_order(found: object) -> tuple[str, ...]:
    """Return the names in a list, or in a mapping from or to indices; none in anything else."""
    if isinstance(found, Mapping):
        if all(isinstance(index, int) for index in found.values()):
            found = {index: name for name, index in found.items()}
        pairs = {int(index): name for index, name in found.items() if str(index).isdigit()}
        found = [pairs.get(index) for index in range(len(found))]
    if not isinstance(found, list | tuple) or not all(isinstance(name, str) for name in found):
        return ()
    return tuple(name.strip() for name in found if name.strip())


def stated_by(network: nn.Module) -> list[object]:
    """Return what a network states as its `classes`, `class_names` and `categories`, else None."""
    return [getattr(network, name, None) for name in ("classes", "class_names", "categories")]


def names_of(network: nn.Module, width: int, *, is_library: bool) -> Names | None:
    """Return the names of a head's classes where the network states them, else None.

    Its attribute `classes`, `class_names` or `categories`; `config.id2label`; timm's
    `label_names`; of a library's network with 1,000 classes, those of ImageNet.
    """
    stated = stated_by(network)
    stated.append(getattr(getattr(network, "config", None), "id2label", None))
    stated.append((getattr(network, "pretrained_cfg", None) or {}).get("label_names"))
    for names in map(in_order, stated):
        if len(names) == width:
            return [(name,) for name in names]
    return _imagenet() if is_library and width == _IMAGENET else None


def _imagenet() -> Names:
    """Return WordNet's number of each class of ImageNet, and all of its names."""
    from timm.data.imagenet_info import ImageNetInfo

    info = ImageNetInfo()
    return [
        (info.index_to_label_name(i), *info.index_to_description(i).split(", "))
        for i in range(_IMAGENET)
    ]


def known_of(names: Names | None, classes: Sequence[str]) -> Known:
    """Return which classes of the data a head knows; names: None where they are not known.

    Names are compared without case, `_` and `-`. A name that two of the head's classes have tells
    none of them; a single common class counts as none, since there is nothing to compare it with.
    """
    found = columns_of(names or (), classes)
    if len(found) < 2:
        found = {}
    return Known(
        columns=tuple(found.values()),
        classes=None if len(found) == len(classes) else tuple(found),
    )


def columns_of(names: Names, classes: Sequence[str]) -> dict[int, int]:
    """Return the column of a head for each class of the data that it knows by name, by place."""
    columns: dict[str, list[int]] = {}
    for column, called in enumerate(names):
        for name in {folded(name) for name in called}:
            columns.setdefault(name, []).append(column)
    return {
        place: own[0]
        for place, name in enumerate(classes)
        if len(own := columns.get(folded(name), [])) == 1
    }


def folded(name: str) -> str:
    """Return a name without case, `_` and `-`."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", name)).strip().casefold()


def about(name: str, known: Known, names: Names | None, width: int, classes: Sequence[str]) -> str:
    """Return a line on what a teacher can teach; '' where it knows all classes of the data."""
    if known.classes is None:
        return ""
    if known.classes:
        shared = listed([classes[place] for place in known.classes])
        return (
            f"Teacher {name} knows {len(known.classes)} of the {len(classes)} classes by name "
            f"({shared}): methods on logits compare these, labels teach the others"
        )
    head = "its classes have no names here" if names is None else listed([n[0] for n in names])
    return (
        f"Teacher {name} knows none of the {len(classes)} classes (it gives {width} numbers; "
        f"{head}): it teaches by features and relations alone. --teacher-epochs 5 fits it to "
        "these classes; --teacher-classes FILE names those of its head"
    )


def listed(names: Sequence[str]) -> str:
    """Return the first names, and an ellipsis for others."""
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
