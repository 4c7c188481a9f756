"""Segmentation in the layout of Pascal VOC: lists of names, images and palette masks.

`ImageSets/Segmentation/train.txt` and `val.txt` list names in `JPEGImages` (.jpg) and
`SegmentationClass` (.png); 255 is void. A `classes.json` replaces the 21 classes of VOC. Test
images come without masks there, so a test split is read only where all its masks exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdsearch.data.base import VOID, Colour, Source
from kdsearch.data.folder import is_image
from kdsearch.data.mask_table import CLASSES, Table, code_of, table_in
from kdsearch.data.masks import source_of
from kdsearch.errors import DataError

IMAGES = "JPEGImages"
_MASKS = "SegmentationClass"
_LISTS = Path("ImageSets") / "Segmentation"
_SPLITS = {"train": ("train", "trainval"), "val": ("val",), "test": ("test",)}
_SHOWN = 3
_BORDER = (224, 224, 192)
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
    images = images_in(root)
    masks = {path.stem: path for path in (root / _MASKS).glob("*.png")}
    names, left_out = listed(root / _LISTS, {IMAGES: images, _MASKS: masks}, label="mask")
    pairs = {split: [(images[name], masks[name]) for name in own] for split, own in names.items()}
    own = root / CLASSES
    table = table_in(own) if own.is_file() else _voc_table()
    return source_of(root, pairs, table, left_out=left_out)


def images_in(root: Path) -> dict[str, Path]:
    """Return the images of VOC by the names that its lists hold."""
    return {path.stem: path for path in (root / IMAGES).iterdir() if is_image(path.name)}


def listed(
    lists: Path, files: Mapping[str, Mapping[str, Path]], *, label: str
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return the names of each split, and names that are left out, by the reason.

    lists: their folder; without one of train.txt and trainval.txt all that have a label are
    train's. files: by name, in each of two folders, the second of labels. Raises DataError for a
    name without a file.
    """
    *_, labels = files.values()
    texts = {
        split: next((file for name in own if (file := lists / f"{name}.txt").is_file()), None)
        for split, own in _SPLITS.items()
    }
    if not any(texts.values()):
        _require(lists.parents[1], sorted(labels), files)
        return {"train": sorted(labels)}, {}
    found: dict[str, list[str]] = {}
    left_out: dict[str, list[str]] = {}
    for split, text in texts.items():
        names = [] if text is None else text.read_text(encoding="utf-8").split()
        missing = sum(name not in labels for name in names)
        if split == "test" and missing:
            left_out[f"test images, since {missing:,} have no {label}"] = names
        elif text is not None and names:
            _require(text, names, files)
            found[split] = names
    if "train" not in found:
        raise DataError(f"{lists / 'train.txt'} lists no images")
    if texts["train"] == lists / "trainval.txt":
        others = {name for split in ("val", "test") for name in found.get(split, ())}
        found["train"] = [name for name in found["train"] if name not in others]
    return found, left_out


def _require(where: Path, names: Sequence[str], files: Mapping[str, Mapping[str, Path]]) -> None:
    for folder, known in files.items():
        if lacking := [name for name in names if name not in known]:
            raise DataError(
                f"{where}: {len(lacking)} of {len(names)} names have no file in {folder}: "
                f"{', '.join(lacking[:_SHOWN])}; remove them or add the files"
            )


def _voc_table() -> Table:
    colours = tuple(_colour(place) for place in range(len(_NAMES)))
    codes = {code_of(colour): i for i, colour in enumerate(colours)}
    ids = {VOID: VOID} | {place: place for place in range(len(_NAMES))}
    return Table(_NAMES, ids, codes | {code_of(_BORDER): VOID}, colours)


def _colour(place: int) -> Colour:
    """Return VOC's colour of an id: its bits, spread over the high bits of the channels."""
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (place >> (3 * bit + channel) & 1) << (7 - bit)
    red, green, blue = channels
    return red, green, blue
