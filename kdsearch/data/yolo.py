"""YOLO's text files: `data.yaml`, images, and a file of boxes for each image.

The label file of `images/train/1.jpg` is `labels/train/1.txt`, of `train/images/1.jpg` it is
`train/labels/1.txt`. Each line is an object: its class, then centre x, centre y, width and height
as shares of the upright image; or its class and the corners of a polygon, which becomes its
bounding box. An image without a label file shows no object.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdsearch.data.base import Source
from kdsearch.data.boxes import (
    Annotated,
    Checks,
    Corners,
    Row,
    below,
    images_in,
    source_of,
    unlabelled_images,
)
from kdsearch.data.decode import in_threads
from kdsearch.data.folder import is_image
from kdsearch.data.headers import upright
from kdsearch.data.pixels import UnreadableError, strict_pillow
from kdsearch.data.sizes import Size
from kdsearch.documents import DocumentError, parse_yaml, read_text
from kdsearch.errors import DataError

_SPLITS = {"train": ("train",), "val": ("val", "valid"), "test": ("test",)}
_NAMES = re.compile(r"^(names|nc)\s*:", re.M)
_IMAGES = re.compile(r"^(train|val|valid)\s*:", re.M)
_SUFFIXES = (".yaml", ".yml")
_LABEL_BYTES = 1 << 24  # of a label file
_LIST_BYTES = 1 << 28  # of a file that lists images
_ROUNDING = 1e-3  # by which a share may leave [0, 1]


@dataclass(frozen=True, slots=True)
class _Config:
    """Content of data.yaml. folders: images of each split. has_keypoints: after each box."""

    root: Path
    file: Path
    classes: tuple[str, ...]
    images: Mapping[str, Sequence[Path]]
    has_keypoints: bool


@dataclass(slots=True)
class _Found:
    """What is counted while label files are read."""

    used: set[Path] = field(default_factory=set)
    without: list[str] = field(default_factory=list)
    polygons: list[str] = field(default_factory=list)


def is_layout(path: Path) -> bool:
    """Return whether a path is a data.yaml, or a folder with one."""
    return bool(_configs(path))


def read(path: Path) -> Source:
    """Return the images and boxes of a data.yaml, or of a folder with one.

    Raises DataError that names file, line and value, for what is damaged or does not agree.
    """
    files = _configs(path)
    if len(files) > 1:
        names = " and ".join(file.name for file in files)
        raise DataError(f"{path}: both {names} describe data; give one of the files as --data")
    config = _config(files[0])
    checks, found = Checks(config.root), _Found()
    splits = {
        split: list(_annotated(config, images, checks, found))
        for split, images in config.images.items()
    }
    hidden: set[str] = set()
    for split in [split for split in splits if split != "train"]:
        if not any(_label_file(image.content) in found.used for image in splits[split]):
            own = [image.name for image in splits.pop(split)]
            checks.left_out[f"images of {split}, since none of them has a label file"] += own
            hidden.update(own)
    folders = {file.parent for file in found.used}
    unused = sorted({file for folder in folders for file in folder.glob("*.txt")} - found.used)
    spare = [below(file, config.root) for file in unused if file.name != "classes.txt"]
    checks.left_out["label files without an image"] += spare
    return source_of(
        config.root,
        splits | unlabelled_images(config.root),
        classes=config.classes,
        files=[config.file, *sorted(found.used)],
        checks=checks,
        notes=_notes([name for name in found.without if name not in hidden], found.polygons),
    )


def _notes(without: Sequence[str], polygons: Sequence[str]) -> Iterator[str]:
    if without:
        yield f"Without a label file, so without an object: {len(without):,} images ({without[0]})"
    if polygons:
        yield f"Polygons become their bounding boxes: {len(polygons):,} ({polygons[0]})"


def _configs(path: Path) -> list[Path]:
    """Return the files that name classes and folders of images, as data.yaml does."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    return [file for file in files if file.suffix.lower() in _SUFFIXES and _is_config(file)]


def _is_config(file: Path) -> bool:
    try:
        text = read_text(file)
    except (OSError, DocumentError):
        return False
    return bool(_NAMES.search(text) and _IMAGES.search(text))


def _config(file: Path) -> _Config:
    try:
        content = parse_yaml(read_text(file))
    except DocumentError as error:
        raise DataError(f"{file}: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{file}: holds no settings; expected train, val and names")
    classes = _classes(file, content)
    above = content.get("path") or "."
    if not isinstance(above, str):
        raise DataError(f"{file}: path is {above!r}, not a folder")
    bases = [file.parent / above, file.parent]
    images: dict[str, list[Path]] = {}
    for split, keys in _SPLITS.items():
        given = next((content[key] for key in keys if content.get(key)), None)
        if given is not None:
            entries = given if isinstance(given, list) else [given]
            images[split] = [i for entry in entries for i in _images(file, bases, split, entry)]
    if "train" not in images:
        raise DataError(f"{file}: names no folder of train; add 'train: images/train'")
    return _Config(file.parent, file, classes, images, "kpt_shape" in content)


def _classes(file: Path, content: Mapping[Any, Any]) -> tuple[str, ...]:
    names, count = content.get("names"), content.get("nc")
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise DataError(
                f"{file}: names has the keys {sorted(names, key=str)}, not 0, 1, 2, ..."
            )
        names = [names[place] for place in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: names is {names!r:.80}; list the names of the classes")
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int | float):
            raise DataError(f"{file}: the class name {name!r} is no text; quote it")
    classes = tuple(map(str, names))
    if len(set(classes)) < len(classes):
        twice = next(name for name in classes if classes.count(name) > 1)
        raise DataError(f"{file}: two classes have the name {twice!r}; rename one of them")
    if count is not None and count != len(classes):
        raise DataError(f"{file}: nc is {count!r}, but names has {len(classes)} classes")
    return classes


def _images(file: Path, bases: Sequence[Path], split: str, entry: object) -> list[Path]:
    """Return the images of a folder, or of a file that lists them. Raises DataError."""
    if not isinstance(entry, str):
        raise DataError(f"{file}: {split} is {entry!r:.80}, not a folder of images")
    inside = entry
    while inside.startswith("../"):  # Roboflow writes ../train/images for train/images
        inside = inside.removeprefix("../")
    tried = [base / name for name in dict.fromkeys((entry, inside)) for base in bases]
    found = next((path for path in tried if path.exists()), None)
    if found is None:
        raise DataError(
            f"{file}: {split} is {entry!r}, and there is no {tried[0]}; correct 'path' or "
            f"'{split}', or remove it"
        )
    images = _listed(found, bases) if found.is_file() else images_in(found)
    if not images:
        raise DataError(f"{file}: {split} is {entry!r}, and there are no images in {found}")
    return images


def _listed(file: Path, bases: Sequence[Path]) -> list[Path]:
    """Return the images that a text file lists, one a line."""
    images = []
    for number, line in enumerate(_lines(file, _LIST_BYTES), start=1):
        if not line:
            continue
        tried = [base / line for base in (*bases, file.parent)]
        found = next((path for path in tried if path.is_file()), None)
        if found is None or not is_image(found.name):
            raise DataError(f"{file}, line {number}: there is no image {line!r}")
        images.append(found)
    return images


def _lines(file: Path, most: int) -> list[str]:
    try:
        return [line.strip() for line in read_text(file, most).splitlines()]
    except DocumentError as error:
        raise DataError(f"{file}: {error}") from None


def _label_file(image: Path) -> Path:
    """Return where the boxes of an image are: below `labels` where it is below `images`."""
    parts = list(image.parts)
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _annotated(
    config: _Config, images: Sequence[Path], checks: Checks, found: _Found
) -> Iterator[Annotated]:
    """Yield images with their boxes; what cannot be read has none, and decoding states why."""
    with strict_pillow():
        for path, size in zip(images, in_threads(_size, images), strict=True):
            file, rows = _label_file(path), list[Row]()
            name = below(path, config.root)
            if not file.is_file():
                found.without.append(name)
            else:
                found.used.add(file)
                rows += _rows(config, file, size, checks, found) if size else ()
            yield Annotated(name=name, content=path, rows=rows, stated=size)


def _size(image: Path) -> Size | None:
    try:
        return upright(image)[0]
    except UnreadableError:
        return None


def _rows(config: _Config, file: Path, size: Size, checks: Checks, found: _Found) -> Iterator[Row]:
    height, width = size
    for number, line in enumerate(_lines(file, _LABEL_BYTES), start=1):
        if not line:
            continue
        where = f"{below(file, config.root)}, line {number}"
        label, shares = _object(line, config, checks.root / where)
        if len(shares) > 4:
            found.polygons.append(where)
        x1, y1, x2, y2 = _corners(shares)
        kept = checks.kept(where, (x1 * width, y1 * height, x2 * width, y2 * height), size)
        if kept is not None:
            yield (*kept, label)


def _object(line: str, config: _Config, where: Path) -> tuple[int, list[float]]:
    """Return the class of an object and the shares of its box or polygon. Raises DataError."""
    try:
        label, *shares = (float(part) for part in line.split())
    except ValueError:
        raise DataError(f"{where}: {line!r:.80} is not numbers") from None
    if label not in range(len(config.classes)):
        last = len(config.classes) - 1
        raise DataError(f"{where}: the class is {label:g}; accepted: 0 to {last}")
    if config.has_keypoints:
        shares = shares[:4]
    if len(shares) < 4 or len(shares) % 2:
        raise DataError(
            f"{where}: {line!r:.80} has {len(shares) + 1} numbers; expected 5, or a polygon's"
        )
    for share in shares:
        if math.isfinite(share) and not -_ROUNDING <= share <= 1 + _ROUNDING:
            raise DataError(f"{where}: {share:g} is not a share from 0 to 1 of the image")
    return int(label), shares


def _corners(shares: Sequence[float]) -> Corners:
    """Return x1, y1, x2, y2 of a box, or around a polygon."""
    if len(shares) == 4:
        x, y, width, height = shares
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    across, down = shares[::2], shares[1::2]
    return min(across), min(down), max(across), max(down)
