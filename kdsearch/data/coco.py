"""COCO JSON: images, categories, and boxes [x, y, width, height] in pixels.

It reads `SPLIT.json` next to `SPLIT/`, `annotations/instances_SPLIT2017.json` with `SPLIT2017/` (as
COCO is), `SPLIT/_annotations.coco.json` with the images in its folder (as Roboflow exports), and
one file for all images, which are then train's. Crowds are ignored, segmentation is not read.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from kdsearch.data.base import Source
from kdsearch.data.boxes import (
    Annotated,
    Checks,
    Row,
    below,
    ignored,
    images_in,
    source_of,
    unlabelled_images,
)
from kdsearch.data.folder import SPLITS, find_splits
from kdsearch.data.sizes import Size
from kdsearch.documents import parse_json, read_text
from kdsearch.errors import DataError

MAX_BYTES = 2 << 30  # of an annotation file; that of COCO's train has 450 MB
_PARTS = ("images", "annotations", "categories")
_BESIDE = "_annotations.coco.json"
_SINGLE = (
    *(_BESIDE, "instances_default.json", "instances.json", "annotations.json", "coco.json"),
    *("result.json", "labels.json"),
)
_SHOWN = 3
_PROBED = 50  # listed images that are looked for, to find their folder
_SPLIT_FILE = re.compile(r"(?:instances_)?((?P<split>[a-z]+)_?(?:20\d\d)?)\.json")


@dataclass(frozen=True, slots=True)
class _File:
    """One annotation file. folders: where its images may lie, the likeliest first."""

    path: Path
    folders: Sequence[Path]


@dataclass(frozen=True, slots=True)
class _Content:
    """What an annotation file holds, as it is there. classes: name by the id of its category."""

    path: Path
    images: Sequence[Any]
    annotations: Sequence[Any]
    classes: Mapping[Any, str]
    supercategories: Mapping[str, object]


def is_layout(root: Path) -> bool:
    """Return whether a folder has COCO's annotation files in one of the nestings."""
    return bool(_files(root))


def read(root: Path) -> Source:
    """Return the images and boxes under `root`.

    Raises DataError that names file, entry and value, for what is damaged or does not agree.
    """
    files = _files(root)
    if "train" not in files:
        named = ", ".join(file.path.name for file in files.values())
        raise DataError(f"{root}: has annotations of {', '.join(files)} ({named}), none of train")
    contents = {split: _content(file.path) for split, file in files.items()}
    classes, notes = _classes(contents)
    checks = Checks(root)
    folders = {
        split: _folder(contents[split], [path for path in file.folders if path.is_dir()])
        for split, file in files.items()
    }
    splits = {
        split: _annotated(root, content, folders[split], classes, checks)
        for split, content in contents.items()
    }
    splits |= unlabelled_images(root)
    listed = {image.content for images in splits.values() for image in images}
    checks.left_out["images that no annotation file lists"] += [
        below(path, root)
        for folder in sorted(set(folders.values()))
        for path in images_in(folder)
        if path not in listed
    ]
    return source_of(
        root,
        splits,
        classes=classes,
        files=[file.path for file in files.values()],
        checks=checks,
        notes=notes,
    )


def _files(root: Path) -> dict[str, _File]:
    """Return the annotation file of each split. Raises DataError for two of one split."""
    folders = find_splits(root)
    named = {
        split: _File(folder / _BESIDE, [folder])
        for split, folder in folders.items()
        if _is_coco(folder / _BESIDE)
    }
    if named:
        return named
    for where in (root / "annotations", root):
        paths = sorted(where.glob("*.json"))
        for prefix in ("instances_", ""):
            found = _by_split(root, [path for path in paths if path.name.startswith(prefix)])
            if found:
                return found
    for where in (root, root / "annotations"):
        for name in _SINGLE:
            if _is_coco(where / name):
                return {"train": _File(where / name, [root / "images", root / "data", root])}
    return {}


def _by_split(root: Path, paths: Sequence[Path]) -> dict[str, _File]:
    """Return the files that are named after a split. Raises DataError for two of one split."""
    found: dict[str, _File] = {}
    for path in paths:
        match = _SPLIT_FILE.fullmatch(path.name.lower())
        split = match and next((key for key, n in SPLITS.items() if match["split"] in n), None)
        if not match or not split or split == "unlabeled" or not _is_coco(path):
            continue
        if split in found:
            both = f"{found[split].path.name} and {path.name}"
            raise DataError(f"{path.parent}: {both} are one split, {split}; keep one of them")
        names = [match[1], *SPLITS[split]]
        own = [root / above / name for above in ("", "images") for name in names]
        found[split] = _File(path, [*own, root / "images", root / "data", root])
    return found


def _is_coco(path: Path) -> bool:
    """Return whether a file names both parts of COCO JSON, without reading its values."""
    if not path.is_file() or not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b'"images"') >= 0 and content.find(b'"annotations"') >= 0


def _content(path: Path) -> _Content:
    try:
        found = parse_json(read_text(path, MAX_BYTES))
    except ValueError as error:
        raise DataError(f"{path}: {error}; write the annotations again") from None
    images, annotations, categories = (_entries(path, found, name) for name in _PARTS)
    _check_unique(path, "category", categories)
    _check_unique(path, "image", images)
    _check_unique(path, "annotation", [entry for entry in annotations if "id" in entry])
    classes: dict[Any, Any] = {entry["id"]: entry.get("name") for entry in categories}
    for key, name in classes.items():
        if not isinstance(name, str) or not name:
            raise DataError(f"{path}: category {key!r} has the name {name!r}, not a text")
    if len(set(classes.values())) < len(classes):
        twice = next(n for n in classes.values() if list(classes.values()).count(n) > 1)
        raise DataError(f"{path}: two categories have the name {twice!r}; rename one of them")
    above = {entry["name"]: entry.get("supercategory") for entry in categories}
    return _Content(path, images, annotations, classes, above)


def _entries(path: Path, found: object, name: str) -> list[dict[str, Any]]:
    """Return the objects in a list of an annotation file. Raises DataError."""
    part = found.get(name) if isinstance(found, dict) else None
    if not isinstance(part, list):
        raise DataError(f"{path}: has no list {name!r}; expected {', '.join(_PARTS)}")
    for place, entry in enumerate(part):
        if not isinstance(entry, dict):
            raise DataError(f"{path}: {name}[{place}] is {entry!r:.80}, not an object")
    return part


def _check_unique(path: Path, what: str, entries: Sequence[Any]) -> None:
    """Raise DataError for an entry without an id, or with one that an earlier entry has."""
    seen = set()
    for entry in entries:
        key = entry.get("id")
        if isinstance(key, bool) or not isinstance(key, int | str):
            raise DataError(f"{path}: {what} {entry!r:.120} has the id {key!r}, not a number")
        if key in seen:
            raise DataError(f"{path}: two entries have the {what} id {key!r}; each needs its own")
        seen.add(key)


def _classes(contents: Mapping[str, _Content]) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of the classes, which all files have, and notes on those left out."""
    train = contents["train"]
    for content in contents.values():
        odd = set(content.classes.values()) ^ set(train.classes.values())
        if odd:
            raise DataError(
                f"{content.path}: its categories differ from those of {train.path.name}: only one "
                f"has {', '.join(map(repr, sorted(odd)[:_SHOWN]))}"
            )
    used = {
        content.classes.get(entry.get("category_id"))
        for content in contents.values()
        for entry in content.annotations
        if isinstance(entry.get("category_id"), int | str)
    }
    names = tuple(train.classes.values())
    root = next((name for name in names if name not in used and _is_root(name, train)), None)
    if root is None:
        return names, []
    kept = tuple(name for name in names if name != root)
    return kept, [f"Left out: the class {root!r}, since it has no boxes and is above all others"]


def _is_root(name: str, content: _Content) -> bool:
    others = [above for other, above in content.supercategories.items() if other != name]
    return bool(others) and all(above == name for above in others)


def _folder(content: _Content, folders: Sequence[Path]) -> Path:
    """Return the folder with most of the images that a file lists first."""
    names = [str(entry.get("file_name")) for entry in content.images[:_PROBED]]
    return max(folders, key=lambda folder: sum((folder / name).is_file() for name in names))


def _annotated(
    root: Path, content: _Content, folder: Path, classes: Sequence[str], checks: Checks
) -> list[Annotated]:
    """Return the images of a file with their boxes."""
    paths = {entry["id"]: folder / _name(content.path, entry) for entry in content.images}
    _check_files(content.path, folder, list(paths.values()))
    sizes = {entry["id"]: _stated(content.path, entry) for entry in content.images}
    labels = {key: classes.index(name) for key, name in content.classes.items() if name in classes}
    rows: dict[Any, list[Row]] = {key: [] for key in paths}
    where = below(content.path, root)
    for place, entry in enumerate(content.annotations):
        name = f"annotation {entry['id']}" if "id" in entry else f"annotations[{place}]"
        image, label = (
            _known(content.path, name, entry, key, known)
            for key, known in (("image_id", paths), ("category_id", labels))
        )
        x, y, width, height = _numbers(content.path, name, entry.get("bbox"))
        kept = checks.kept(f"{where}: {name}", (x, y, x + width, y + height), sizes[image])
        if kept is not None:
            code = labels[label]
            rows[image].append((*kept, ignored(code) if entry.get("iscrowd") else code))
    return [
        Annotated(name=below(path, root), content=path, rows=rows[key], stated=sizes[key])
        for key, path in paths.items()
    ]


def _name(path: Path, entry: Mapping[str, Any]) -> str:
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        raise DataError(f"{path}: image {entry['id']} has the file_name {name!r}, not a text")
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise DataError(f"{path}: image {entry['id']}: {name!r} is outside of the data")
    return name


def _check_files(path: Path, folder: Path, images: Sequence[Path]) -> None:
    if len(set(images)) < len(images):
        twice = next(image for image in images if images.count(image) > 1)
        raise DataError(f"{path}: two images have the file_name {below(twice, folder)!r}")
    missing = [below(image, folder) for image in images if not image.is_file()]
    if missing:
        raise DataError(
            f"{path}: {len(missing):,} of its {len(images):,} images are not in {folder}: "
            f"{', '.join(missing[:_SHOWN])}; add the files, or remove them from the annotations"
        )


def _stated(path: Path, entry: Mapping[str, Any]) -> Size | None:
    """Return (H, W) where an image states both. Raises DataError for what is no size."""
    sides: tuple[Any, Any] = entry.get("height"), entry.get("width")
    if sides == (None, None):
        return None
    for side in sides:
        if not _is_number(side) or side < 1 or side != side // 1:
            raise DataError(
                f"{path}: image {entry['id']} has width {sides[1]!r} and height {sides[0]!r}, not "
                "pixels"
            )
    return int(sides[0]), int(sides[1])


def _known(
    path: Path, name: str, entry: Mapping[str, Any], key: str, known: Mapping[Any, object]
) -> Any:
    value = entry.get(key)
    if not isinstance(value, int | str) or value not in known:
        what = key.removesuffix("_id")
        raise DataError(f"{path}: {name} is of {what} {value!r}, which the file does not list")
    return value


def _numbers(path: Path, name: str, box: object) -> list[float]:
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise DataError(f"{path}: {name} has the bbox {box!r:.80}; expected [x, y, width, height]")
    try:
        return [float(value) for value in box]
    except OverflowError:
        return [math.inf] * 4


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
