"""Boxes in the layout of Pascal VOC: `JPEGImages`, `Annotations/*.xml`, `ImageSets/Main`.

The lists `train.txt` (else `trainval.txt`), `val.txt` and `test.txt` name images; without lists all
annotated images are train's. Corners count pixels from 1 and include both ends, as VOC's do.
Objects marked difficult are ignored. Classes are the names of the objects, sorted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from kdsearch.data.base import Source
from kdsearch.data.boxes import Annotated, Checks, Corners, Row, ignored, source_of
from kdsearch.data.decode import in_threads
from kdsearch.data.sizes import Size
from kdsearch.data.voc import IMAGES, images_in, listed
from kdsearch.documents import DocumentError, read_text
from kdsearch.errors import DataError

_LISTS = Path("ImageSets") / "Main"
_ANNOTATIONS = "Annotations"
_MAX_BYTES = 1 << 24  # of an annotation
MAX_SIDE = 1 << 20  # px, of a stated size
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, slots=True)
class _Object:
    """An object of an annotation; corners are edges in pixels, counted from 0."""

    name: str
    corners: Corners
    is_difficult: bool


@dataclass(frozen=True, slots=True)
class _Annotation:
    """Content of an annotation. size: (H, W), None where it is not stated."""

    size: Size | None
    objects: Sequence[_Object]


def is_layout(root: Path) -> bool:
    """Return whether a folder has the images and annotations of VOC."""
    return (root / IMAGES).is_dir() and next((root / _ANNOTATIONS).glob("*.xml"), None) is not None


def read(root: Path) -> Source:
    """Return the images and boxes in the lists.

    Raises DataError for a name without a file, and for a damaged annotation.
    """
    images, checks = images_in(root), Checks(root)
    annotated = {path.stem: path for path in (root / _ANNOTATIONS).glob("*.xml")}
    names, left_out = listed(
        root / _LISTS, {IMAGES: images, _ANNOTATIONS: annotated}, label="annotation"
    )
    checks.left_out.update(left_out)
    files = [annotated[name] for found in names.values() for name in found]
    parsed = dict(zip(files, in_threads(_parsed, files), strict=True))
    classes = sorted({it.name for found in parsed.values() for it in found.objects})
    labels = {name: label for label, name in enumerate(classes)}
    splits = {
        split: [_annotated(images[name], parsed[annotated[name]], labels, checks) for name in own]
        for split, own in names.items()
    }
    return source_of(root, splits, classes=classes, files=files, checks=checks)


def _annotated(
    image: Path, found: _Annotation, labels: Mapping[str, int], checks: Checks
) -> Annotated:
    rows: list[Row] = []
    for place, it in enumerate(found.objects, start=1):
        where = f"{_ANNOTATIONS}/{image.stem}.xml: object {place} ({it.name})"
        kept = checks.kept(where, it.corners, found.size)
        if kept is not None:
            label = labels[it.name]
            rows.append((*kept, ignored(label) if it.is_difficult else label))
    return Annotated(name=f"{IMAGES}/{image.name}", content=image, rows=rows, stated=found.size)


def _parsed(file: Path) -> _Annotation:
    """Return the content of an annotation; a document type, which may hold entities, is refused."""
    try:
        text = read_text(file, _MAX_BYTES)
        if "<!DOCTYPE" in text:
            raise DocumentError("a document type is not supported; remove <!DOCTYPE ...>")
        tree = ElementTree.fromstring(text)
    except (DocumentError, ElementTree.ParseError) as error:
        raise DataError(f"{file}: {error}") from None
    objects = [
        _object(f"{file}: object {place}", entry)
        for place, entry in enumerate(tree.findall("object"), start=1)
    ]
    height, width = (_side(file, tree, side) for side in ("height", "width"))
    return _Annotation((height, width) if height and width else None, objects)


def _side(file: Path, tree: ElementTree.Element, side: str) -> int:
    """Return a side of an image in pixels, 0 where it is not stated. Raises DataError."""
    found = _number(str(file), tree, f"size/{side}", "0")
    if found not in range(MAX_SIDE + 1):
        raise DataError(f"{file}: size/{side} is {found:g}, not a number of pixels")
    return int(found)


def _object(where: str, entry: ElementTree.Element) -> _Object:
    name = (entry.findtext("name") or "").strip()
    if not name:
        raise DataError(f"{where} has no name")
    x1, y1, x2, y2 = (_number(where, entry, f"bndbox/{side}") for side in _CORNERS)
    is_difficult = _number(where, entry, "difficult", "0") != 0
    return _Object(name, (x1 - 1, y1 - 1, x2, y2), is_difficult)


def _number(where: str, entry: ElementTree.Element, path: str, default: str = "") -> float:
    text = entry.findtext(path, default).strip()
    try:
        return float(text)
    except ValueError:
        raise DataError(f"{where}: {path} is {text!r}, not a number") from None
