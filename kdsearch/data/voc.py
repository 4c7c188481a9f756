"""Segmentation in the layout of Pascal VOC: lists of names, images and palette masks.

`ImageSets/Segmentation/train.txt` and `val.txt` list names in `JPEGImages` (.jpg) and
`SegmentationClass` (.png); 255 is void. A `classes.json` replaces the 21 classes of VOC. Test
images come without masks there, so a test split is read only where all its masks exist.
"""

from __future__ import annotations

from pathlib import Path

from kdsearch.data.base import VOID, Colour, Source
from kdsearch.data.folder import is_image
from kdsearch.data.mask_table import CLASSES, Table, table_in
from kdsearch.data.masks import Pairs, source_of
from kdsearch.errors import DataError

_LISTS = Path("ImageSets") / "Segmentation"
_IMAGES, _MASKS = "JPEGImages", "SegmentationClass"
_SPLITS = ("train", "val", "test")
_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
    *("cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)


def is_layout(root: Path) -> bool:
    """Return whether a folder has the lists, images and masks of VOC."""
    return (root / _LISTS / "train.txt").is_file() and (root / _MASKS).is_dir()


def read(root: Path) -> Source:
    """Return the images and masks in the lists. Raises DataError for a name without a file."""
    pairs, left_out = {}, {}
    images = {path.stem: path for path in (root / _IMAGES).iterdir() if is_image(path.name)}
    for split in _SPLITS:
        file = root / _LISTS / f"{split}.txt"
        names = file.read_text(encoding="utf-8").split() if file.is_file() else []
        masks = {name: root / _MASKS / f"{name}.png" for name in names}
        missing = [name for name in names if not masks[name].is_file()]
        if split == "test" and missing:
            left_out[f"test images, since {len(missing):,} have no mask"] = names
        elif names:
            pairs[split] = _found(file, names, images, masks, missing)
    if "train" not in pairs:
        raise DataError(f"{root / _LISTS / 'train.txt'} lists no images")
    own = root / CLASSES
    table = table_in(own) if own.is_file() else _voc_table()
    return source_of(root, pairs, table, left_out=left_out)


def _found(
    file: Path,
    names: list[str],
    images: dict[str, Path],
    masks: dict[str, Path],
    missing: list[str],
) -> Pairs:
    """Return image and mask of each name in a list. Raises DataError."""
    for folder, lacking in ((_MASKS, missing), (_IMAGES, [n for n in names if n not in images])):
        if lacking:
            raise DataError(
                f"{file}: {len(lacking)} of {len(names)} names have no file in {folder}: "
                f"{', '.join(lacking[:3])}; remove these lines or add the files"
            )
    return [(images[name], masks[name]) for name in names]


def _voc_table() -> Table:
    colours = tuple(_colour(place) for place in range(len(_NAMES)))
    codes = {red << 16 | green << 8 | blue: i for i, (red, green, blue) in enumerate(colours)}
    ids = {VOID: VOID} | {place: place for place in range(len(_NAMES))}
    border = 224 << 16 | 224 << 8 | 192
    return Table(_NAMES, ids, codes | {border: VOID}, colours)


def _colour(place: int) -> Colour:
    """Return VOC's colour of an id: its bits, spread over the high bits of the channels."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (place >> (3 * bit + channel) & 1) << (7 - bit)
    red, green, blue = channels
    return red, green, blue
