"""Image and mask folders: `images/SPLIT` with `masks/SPLIT`, `SPLIT/images` with `SPLIT/masks`.

A mask has its image's name and size; the value of a pixel is the id of its class: an index into the
palette, or a grey value, never a colour. Masks in colours need the colours of the classes in
`classes.json`. Ids are read from the masks of train where there is no such file; then 255 is void,
unless 0 is the only other one. Without folders of splits all images are train's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdsearch.data import folder
from kdsearch.data.base import SEGMENTATION, VOID, Placed, Sample, Source
from kdsearch.data.decode import in_threads
from kdsearch.data.folder import SPLITS, is_image
from kdsearch.data.headers import opened, upright
from kdsearch.data.mask_table import CLASSES, Table, table_in, table_of
from kdsearch.data.pixels import UnreadableError, strict_pillow
from kdsearch.data.sizes import Size, placed, size_text
from kdsearch.errors import DataError

_IMAGES = ("images", "image", "imgs", "img")
_MASKS = ("masks", "mask", "labels", "annotations")
_ENDINGS = ("", "_mask", "_label", "_labels", "_seg", "_L")  # of a mask's name, after its image's
_LOSSY = (".jpg", ".jpeg")
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow stretches grey of 2 and 4 bits to 0..255
Pairs: TypeAlias = Sequence[tuple[Path, Path | None]]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MaskFile(Placed):
    """A mask in a file or encoded; content None: an image without one. name: for messages."""

    content: Path | bytes | None
    table: Table
    name: str = ""

    def decode(self, image: Path | bytes | Image.Image, size: Size) -> NDArray[np.uint8]:
        """Return the classes [H, W]; what lies outside of the image is void."""
        canvas = np.full(size, VOID, np.uint8)
        if self.content is None:
            return canvas
        whole, _ = upright(image)
        codes, are_colours = codes_of(self.content, self.name)
        if codes.shape != whole:
            raise UnreadableError(
                f"its mask {self.name} has {size_text(codes.shape)} pixels (height x width), the "
                f"image {size_text(whole)}"
            )
        classes = self.table.classes(codes, are_colours=are_colours, where=self.name)
        top, left, height, width = placed(whole, size)
        nearest = Image.fromarray(classes).resize((width, height), Image.Resampling.NEAREST)
        canvas[top : top + height, left : left + width] = np.asarray(nearest)
        return canvas


def codes_of(content: Path | bytes, name: str) -> tuple[NDArray[np.int32], bool]:
    """Return the ids, or the colours as 0xRRGGBB, of a mask [H, W], and whether they are colours.

    Raises UnreadableError, also for 16 bits and for JPEG.
    """
    with opened(content) as image:
        if image.format == "JPEG":
            raise UnreadableError(f"its mask {name} is a JPEG, which changes ids; save it as PNG")
        tiles = getattr(image, "tile", [])  # how the file holds the pixels
        step = _GREY_STEPS.get(str(tiles[0][3]), 1) if tiles else 1
        if image.mode in ("1", "L", "P"):
            return np.asarray(image).astype(np.int32) // step, False
        if image.mode in ("RGB", "RGBA"):
            red, green, blue = np.asarray(image.convert("RGB")).astype(np.int32).transpose(2, 0, 1)
            return red << 16 | green << 8 | blue, True
        raise UnreadableError(
            f"its mask {name} has pixels of mode {image.mode!r}; expected palette indices or grey "
            "values of 8 bits, or colours"
        )


def is_layout(root: Path) -> bool:
    """Return whether a folder has images and masks in one of the nestings."""
    return bool(_folders(root))


def read(root: Path) -> Source:
    """Return the images and masks under `root`.

    Raises DataError for images without a mask, masks in JPEG, a wrong classes.json, and folders
    of classes next to the masks.
    """
    pairs = pairs_in(root)
    file = root / CLASSES
    table = table_in(file) if file.is_file() else table_of(ids_in(pairs["train"], root), root)
    return source_of(root, pairs, table)


def pairs_in(root: Path) -> dict[str, Pairs]:
    """Return each split's images with their masks; a split is train. Raises DataError."""
    found = _folders(root)
    _require_one_task(root, found)
    pairs: dict[str, Pairs] = {split: _pairs(*folders) for split, folders in found.items()}
    if "train" not in pairs:
        raise DataError(f"{root}: has masks of {', '.join(pairs)}, but none of train")
    return pairs


def ids_in(pairs: Pairs, root: Path) -> set[int]:
    """Return the ids in the masks. Raises DataError for masks in colours."""
    masks = ((mask, str(mask)) for _, mask in pairs if mask is not None)
    return ids_of(masks, root / CLASSES)


def ids_of(masks: Iterable[tuple[Path | bytes, str]], file: Path) -> set[int]:
    """Return the ids in masks, each given with its name. file: where colours would be stated.

    Raises DataError for masks in colours, and where none can be read.
    """

    def found_in(mask: tuple[Path | bytes, str]) -> set[int] | UnreadableError:
        try:
            codes, are_colours = codes_of(*mask)
        except UnreadableError as error:
            return error  # decoding meets it again, and counts and names it there
        if are_colours:
            raise DataError(
                f"{mask[1]}: a mask in colours; write the id, name and colour of each class to "
                f"{file}"
            )
        return set(np.unique(codes).tolist())

    ids: set[int] = set()
    reasons = []
    with strict_pillow():
        for found in in_threads(found_in, masks):
            if isinstance(found, set):
                ids |= found
            else:
                reasons.append(str(found))
    if reasons and not ids:
        raise DataError(f"{file.parent}: no mask of train can be read: {reasons[0]}")
    return ids


def source_of(
    root: Path,
    pairs: Mapping[str, Pairs],
    table: Table,
    *,
    left_out: Mapping[str, Sequence[str]] | None = None,
    notes: Sequence[str] = (),
) -> Source:
    """Return the source of images and masks by split. left_out, notes: see Source."""
    below = len(root.as_posix()) + 1
    contents = [path for split in pairs.values() for pair in split for path in pair if path]
    return Source(
        name=root.resolve().name,
        task=SEGMENTATION,
        classes=table.names,
        splits={
            split: [
                Sample(
                    name=image.as_posix()[below:],
                    label=MaskFile(mask, table, str(mask)),
                    content=image,
                )
                for image, mask in found
            ]
            for split, found in pairs.items()
        },
        content=[("classes", table.described())]
        + [(path.as_posix()[below:], path) for path in contents],
        is_padded=True,
        colours=table.shown,
        left_out=left_out or {},
        notes=notes,
    )


def _folders(root: Path) -> dict[str, tuple[Path, Path | None]]:
    """Return the folders of images and masks of each split; of an unlabelled one no masks."""
    images, masks = (_first(root, names) for names in (_IMAGES, _MASKS))
    if images is not None and masks is not None:
        found = {s: (_first(images, names), _first(masks, names)) for s, names in SPLITS.items()}
        if not any(mine for mine, _ in found.values()):
            found = {"train": (images, masks)}
    else:
        inner = {split: _first(root, names) for split, names in SPLITS.items()}
        found = {s: (_first(own, _IMAGES), _first(own, _MASKS)) for s, own in inner.items()}
    kept = {split: (mine, theirs) for split, (mine, theirs) in found.items() if mine is not None}
    has_masks = any(theirs is not None and _files(theirs) for _, theirs in kept.values())
    return kept if has_masks else {}


def _require_one_task(root: Path, found: Mapping[str, tuple[Path, Path | None]]) -> None:
    """Raise DataError where folders of classes, as `train/CLASS`, are there as well as masks."""
    train = folder.find_splits(root).get("train")
    if train is None or any(train in images.parents for images, _ in found.values()):
        return
    classes = [path for path in sorted(train.iterdir()) if path.is_dir() and _files(path)]
    if classes:
        raise DataError(
            f"{root}: holds images with masks, and classes in {train}: {_listed(classes)}; a data "
            "set has one task: move one of the two to a folder of its own"
        )


def _first(root: Path | None, names: Sequence[str]) -> Path | None:
    """Return the folder in `root` that has the first of the names, in upper or lower case."""
    inside = [] if root is None else [path for path in root.iterdir() if path.is_dir()]
    folders = {path.name.lower(): path for path in inside}
    return next((folders[name] for name in names if name in folders), None)


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if is_image(path.name) and path.is_file())


def _pairs(images: Path, masks: Path | None) -> list[tuple[Path, Path | None]]:
    """Return each image with the mask of its name, in folders of any depth."""
    found = _files(images)
    if not found:
        raise DataError(f"{images}: no images in it or below; remove the folder or add files")
    if images.name in SPLITS["unlabeled"] or images.parent.name in SPLITS["unlabeled"]:
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
