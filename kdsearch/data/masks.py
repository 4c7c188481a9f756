"""Image and mask folders: `images/SPLIT` with `masks/SPLIT`, `SPLIT/images` with `SPLIT/masks`.

A mask has its image's name and size; the value of a pixel is the id of its class: an index into the
palette, or a grey value, never a colour. Masks in colours need the colours of the classes in
`classes.json`. Ids are read from the masks of train where there is no such file; then 255 is void,
unless 0 is the only other one. Without folders of splits all images are train's.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kdsearch.data.base import SEGMENTATION, VOID, Colour, Placed, Sample, Source
from kdsearch.data.folder import is_image
from kdsearch.data.headers import opened, upright
from kdsearch.data.pixels import UnreadableError, strict_pillow
from kdsearch.data.sizes import Size, placed, size_text
from kdsearch.documents import mistake_in, parse_json
from kdsearch.errors import DataError

CLASSES = "classes.json"
_IMAGES = ("images", "image", "imgs", "img")
_MASKS = ("masks", "mask", "labels", "annotations")
_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
    "unlabeled": ("unlabeled", "unlabelled"),
}
_ENDINGS = ("", "_mask", "_label", "_labels", "_seg", "_L")  # of a mask's name, after its image's
_LOSSY = (".jpg", ".jpeg")
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow stretches grey of 2 and 4 bits to 0..255
Pairs: TypeAlias = Sequence[tuple[Path, Path | None]]
_log = logging.getLogger(__name__)


_Channel = Annotated[int, Field(ge=0, le=255)]


class _Class(BaseModel):
    """One class of classes.json."""

    model_config = ConfigDict(extra="ignore", strict=True)
    id: int = Field(ge=0, le=255)
    name: str
    colour: tuple[_Channel, _Channel, _Channel] | None = Field(None, strict=False)


class _File(BaseModel):
    """Content of classes.json. ignore_index: the id or ids of void."""

    model_config = ConfigDict(extra="ignore", strict=True)
    classes: list[_Class]
    ignore_index: int | list[int] = VOID
    ignore: _Class | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """The class of each id, and of each colour where masks are in colours.

    names: of the classes. ids, colours: the class, or VOID, by its code; a colour's is 0xRRGGBB.
    shown: the colour of each class, empty unless all have one. twice: names of two classes of one
    colour.
    """

    names: tuple[str, ...]
    ids: Mapping[int, int]
    colours: Mapping[int, int]
    shown: tuple[Colour, ...] = ()
    twice: tuple[str, ...] = ()

    def classes(
        self, codes: NDArray[np.int32], *, are_colours: bool, where: object
    ) -> NDArray[np.uint8]:
        """Return the classes of codes [H, W]. Raises DataError that names an unknown one."""
        known = self.colours if are_colours else self.ids
        if are_colours and self.twice:
            raise DataError(
                f"{where}: a mask in colours, but {' and '.join(self.twice)} have one colour in "
                f"{CLASSES}; give each class its own"
            )
        if are_colours and not known:
            raise DataError(
                f"{where}: a mask in colours; add a 'colour' to each class in {CLASSES}, or save "
                "ids as a palette or grey PNG"
            )
        keys = np.array(sorted(known), np.int32)
        place = np.searchsorted(keys, codes).clip(max=len(keys) - 1)
        wrong = keys[place] != codes
        if wrong.any():
            raise DataError(self._unknown(int(codes[wrong][0]), are_colours, where))
        found: NDArray[np.uint8] = np.array([known[key] for key in keys.tolist()], np.uint8)[place]
        return found

    def _unknown(self, code: int, are_colours: bool, where: object) -> str:
        names = {**dict(enumerate(self.names)), VOID: "void"}
        known = self.colours if are_colours else self.ids
        shown = [f"{_code_text(key, are_colours)} {names[known[key]]}" for key in sorted(known)]
        listed = ", ".join(shown[:20]) + (f", … ({len(shown)} in all)" if shown[20:] else "")
        return (
            f"{where}: the pixel value {_code_text(code, are_colours)} is no class; known: "
            f"{listed}. Mend the mask, or list its classes in {CLASSES}"
        )


def _code_text(code: int, is_colour: bool) -> str:
    return f"({code >> 16}, {code >> 8 & 255}, {code & 255})" if is_colour else str(code)


@dataclass(frozen=True, slots=True)
class MaskFile(Placed):
    """A mask in a file; path None: an image without a mask."""

    path: Path | None
    table: Table

    def decode(self, image: Path | bytes | Image.Image, size: Size) -> NDArray[np.uint8]:
        """Return the classes [H, W]; what lies outside of the image is void."""
        canvas = np.full(size, VOID, np.uint8)
        if self.path is None:
            return canvas
        whole, _ = upright(image)
        codes, are_colours = codes_of(self.path)
        if codes.shape != whole:
            raise UnreadableError(
                f"its mask {self.path} has {size_text(codes.shape)} pixels (height x width), the "
                f"image {size_text(whole)}"
            )
        classes = self.table.classes(codes, are_colours=are_colours, where=self.path)
        top, left, height, width = placed(whole, size)
        nearest = Image.fromarray(classes).resize((width, height), Image.Resampling.NEAREST)
        canvas[top : top + height, left : left + width] = np.asarray(nearest)
        return canvas


def codes_of(path: Path) -> tuple[NDArray[np.int32], bool]:
    """Return the ids, or the colours as 0xRRGGBB, of a mask [H, W], and whether they are colours.

    Raises UnreadableError, also for 16 bits.
    """
    with opened(path) as image:
        tiles = getattr(image, "tile", [])  # how the file holds the pixels
        step = _GREY_STEPS.get(str(tiles[0][3]), 1) if tiles else 1
        if image.mode in ("1", "L", "P"):
            return np.asarray(image).astype(np.int32) // step, False
        if image.mode in ("RGB", "RGBA"):
            red, green, blue = np.asarray(image.convert("RGB")).astype(np.int32).transpose(2, 0, 1)
            return red << 16 | green << 8 | blue, True
        raise UnreadableError(
            f"its mask {path} has pixels of mode {image.mode!r}; expected palette indices or grey "
            "values of 8 bits, or colours"
        )


def is_layout(root: Path) -> bool:
    """Return whether a folder has images and masks in one of the nestings."""
    return bool(_folders(root))


def read(root: Path) -> Source:
    """Return the images and masks under `root`.

    Raises DataError for images without a mask, masks in JPEG, and a wrong classes.json.
    """
    pairs = {split: _pairs(*folders) for split, folders in _folders(root).items()}
    if "train" not in pairs:
        raise DataError(f"{root}: has masks of {', '.join(pairs)}, but none of train")
    file = root / CLASSES
    table = table_in(file) if file.is_file() else _inferred(root, pairs["train"])
    return source_of(root, pairs, table)


def source_of(
    root: Path,
    pairs: Mapping[str, Pairs],
    table: Table,
    *,
    left_out: Mapping[str, Sequence[str]] | None = None,
) -> Source:
    """Return the source of images and masks by split. left_out: see Source."""
    below = len(root.as_posix()) + 1
    contents = [path for split in pairs.values() for pair in split for path in pair if path]
    described = json.dumps([table.names, sorted(table.ids.items()), sorted(table.colours.items())])
    return Source(
        name=root.resolve().name,
        task=SEGMENTATION,
        classes=table.names,
        splits={
            split: [
                Sample(name=image.as_posix()[below:], label=MaskFile(mask, table), content=image)
                for image, mask in found
            ]
            for split, found in pairs.items()
        },
        content=[("classes", described.encode())]
        + [(path.as_posix()[below:], path) for path in contents],
        is_padded=True,
        colours=table.shown,
        left_out=left_out or {},
    )


def _folders(root: Path) -> dict[str, tuple[Path, Path | None]]:
    """Return the folders of images and masks of each split; of an unlabelled one no masks."""
    below = {path.name.lower(): path for path in root.iterdir() if path.is_dir()}
    images, masks = (_first(below, names) for names in (_IMAGES, _MASKS))
    if images is not None and masks is not None:
        inside = {p.name.lower(): p for p in images.iterdir() if p.is_dir()}
        theirs = {p.name.lower(): p for p in masks.iterdir() if p.is_dir()}
        found = {s: (_first(inside, n), _first(theirs, n)) for s, n in _SPLITS.items()}
        if not any(mine for mine, _ in found.values()):
            found = {"train": (images, masks)}
    else:
        found = {}
        for split, names in _SPLITS.items():
            folder = _first(below, names)
            own = {} if folder is None else {p.name.lower(): p for p in folder.iterdir()}
            found[split] = _first(own, _IMAGES), _first(own, _MASKS)
    kept = {split: (mine, theirs) for split, (mine, theirs) in found.items() if mine is not None}
    has_masks = any(theirs is not None and _files(theirs) for _, theirs in kept.values())
    return kept if has_masks else {}


def _first(folders: Mapping[str, Path], names: Sequence[str]) -> Path | None:
    return next((folders[name] for name in names if name in folders), None)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if is_image(path.name) and path.is_file())


def _pairs(images: Path, masks: Path | None) -> list[tuple[Path, Path | None]]:
    """Return each image with the mask of its name, in folders of any depth."""
    found = _files(images)
    if not found:
        raise DataError(f"{images}: no images in it or below; remove the folder or add files")
    if images.name in _SPLITS["unlabeled"] or images.parent.name in _SPLITS["unlabeled"]:
        return [(path, None) for path in found]
    if masks is None:
        raise DataError(f"{images}: there is no folder of masks for these images")
    by_name = {path.relative_to(masks).with_suffix("").as_posix(): path for path in _files(masks)}
    names = [path.relative_to(images).with_suffix("").as_posix() for path in found]
    ending = max(_ENDINGS, key=lambda ending: sum(name + ending in by_name for name in names))
    missing = [
        path for path, name in zip(found, names, strict=True) if name + ending not in by_name
    ]
    if missing:
        raise DataError(
            f"{images}: {len(missing)} of {len(found)} images have no mask in {masks}: "
            f"{_listed(missing)}; a mask has the name of its image, as "
            f"{masks / (names[0] + '.png')}; move images without one to 'unlabeled'"
        )
    pairs = [(path, by_name.pop(name + ending)) for path, name in zip(found, names, strict=True)]
    if lossy := [mask for _, mask in pairs if mask.suffix.lower() in _LOSSY]:
        raise DataError(
            f"{masks}: {_listed(lossy)}: JPEG changes the ids of pixels; save masks as PNG"
        )
    if by_name:
        _log.warning(
            "%s: %d masks have no image and are not used: %s",
            masks,
            len(by_name),
            _listed(by_name.values()),
        )
    return list(pairs)


def _listed(paths: Iterable[Path]) -> str:
    names = [path.name for path in paths]
    return ", ".join(names[:3]) + (", …" if names[3:] else "")


def table_in(file: Path) -> Table:
    """Return the table that classes.json states. Raises DataError."""
    try:
        given = parse_json(file.read_text(encoding="utf-8"))
        listed = given if isinstance(given, list) else given.get("classes", [])
        entries = [{"id": i, "name": c} if isinstance(c, str) else c for i, c in enumerate(listed)]
        rest = {} if isinstance(given, list) else given
        content = _File.model_validate_json(json.dumps({**rest, "classes": entries}))
    except (ValueError, AttributeError, ValidationError) as error:
        raise DataError(
            f"{file}: {mistake_in(error)}; expected "
            '{"classes": [{"id": 0, "name": "sky", "colour": [128, 128, 128]}, ...], '
            '"ignore_index": 255}'
        ) from None
    ids, names = [c.id for c in content.classes], tuple(c.name for c in content.classes)
    for what, values in (("ids", ids), ("names", names)):
        if len(set(values)) < len(values):
            raise DataError(
                f"{file}: two classes have one of the {what} {', '.join(map(str, values))}"
            )
    void = content.ignore_index
    ignored = dict.fromkeys([void] if isinstance(void, int) else void, VOID)
    colours = {_code(c.colour): i for i, c in enumerate(content.classes) if c.colour}
    coloured = [*content.classes]
    if content.ignore is not None:
        ignored[content.ignore.id] = VOID
        coloured.append(content.ignore)
        if content.ignore.colour:
            colours = {_code(content.ignore.colour): VOID} | colours
    listed_ids = {number: i for i, number in enumerate(ids)}
    given_colours = tuple(c.colour for c in content.classes if c.colour)
    shown = given_colours if len(given_colours) == len(names) else ()
    twice = next(
        (
            (one.name, other.name)
            for one, other in combinations(coloured, 2)
            if one.colour and one.colour == other.colour
        ),
        (),
    )
    return _checked(Table(names, ignored | listed_ids, colours, shown, twice), file)


def _code(colour: Colour) -> int:
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def _inferred(root: Path, pairs: Sequence[tuple[Path, Path | None]]) -> Table:
    """Return a table of the ids in train's masks, each a class of that name."""

    def ids_in(mask: Path) -> set[int]:
        try:
            codes, are_colours = codes_of(mask)
        except UnreadableError:
            return set()  # decoding meets it again, and counts and names it there
        if are_colours:
            raise DataError(
                f"{mask}: a mask in colours; write the id, name and colour of each class to "
                f"{root / CLASSES}"
            )
        return set(np.unique(codes).tolist())

    with strict_pillow(), ThreadPoolExecutor() as pool:
        found = set[int]().union(*pool.map(ids_in, [mask for _, mask in pairs if mask is not None]))
    ids = sorted(found if found <= {0, VOID} else found - {VOID})
    table = {number: i for i, number in enumerate(ids)}
    void = {} if VOID in table else {VOID: VOID}
    return _checked(Table(tuple(map(str, ids)), void | table, {}), root)


def _checked(table: Table, where: Path) -> Table:
    if len(table.names) < 2:
        raise DataError(
            f"{where}: segmentation needs at least two classes, the background among them; found "
            f"{', '.join(table.names) or 'none'}"
        )
    return table
