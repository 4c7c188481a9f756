"""Segmentation in the layout of Cityscapes: leftImg8bit and gtFine, with a folder for each city.

Masks are `*_gtFine_labelTrainIds.png` where all images have them, else `*_gtFine_labelIds.png`, of
which 19 ids are classes and the others void. Masks of its test split hold no classes, so that split
is left out, and test images are carved from train.
"""

from __future__ import annotations

from pathlib import Path

from kdsearch.data.base import VOID, Colour, Source
from kdsearch.data.mask_table import Table
from kdsearch.data.masks import source_of
from kdsearch.errors import DataError

_IMAGES, _MASKS = "leftImg8bit", "gtFine"
_SPLITS = ("train", "val")
_KINDS = ("labelTrainIds", "labelIds")
_LABEL_IDS = 35  # 0 to 34; a licence plate is -1, in a mask 255
# Name, labelId and colour in the order of the training ids, cityscapesScripts' labels.py.
_CLASSES: tuple[tuple[str, int, Colour], ...] = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)


def is_layout(root: Path) -> bool:
    """Return whether a folder has the images and masks of Cityscapes."""
    return all((root / folder / "train").is_dir() for folder in (_IMAGES, _MASKS))


def read(root: Path) -> Source:
    """Return train and val. Raises DataError for images without a mask."""
    images = {
        split: sorted((root / _IMAGES / split).glob(f"*/*_{_IMAGES}.png")) for split in _SPLITS
    }
    if not images["train"]:
        raise DataError(f"{root / _IMAGES}: no train/CITY/*_{_IMAGES}.png in it")
    every = [image for paths in images.values() for image in paths]
    lacking = {
        kind: [image.name for image in every if not _mask(image, kind).is_file()] for kind in _KINDS
    }
    kind = min(_KINDS, key=lambda kind: len(lacking[kind]))
    if lacking[kind]:
        raise DataError(
            f"{root / _MASKS}: {len(lacking[kind])} images have no mask *_{_MASKS}_{kind}.png: "
            f"{', '.join(lacking[kind][:3])}; add the masks or remove the images"
        )
    pairs = {
        split: [(image, _mask(image, kind)) for image in paths]
        for split, paths in images.items()
        if paths
    }
    hidden = [path.name for path in (root / _IMAGES / "test").glob(f"*/*_{_IMAGES}.png")]
    left_out = {"test images, whose masks hold no classes": hidden} if hidden else {}
    return source_of(root, pairs, _table(kind), left_out=left_out)


def _mask(image: Path, kind: str) -> Path:
    """Return the path of an image's mask: gtFine/SPLIT/CITY/NAME."""
    city, split, _, root = image.parents[:4]
    name = f"{image.name.removesuffix(f'_{_IMAGES}.png')}_{_MASKS}_{kind}.png"
    return root / _MASKS / split.name / city.name / name


def _table(kind: str) -> Table:
    if kind == "labelTrainIds":
        ids = {VOID: VOID} | {place: place for place in range(len(_CLASSES))}
    else:
        ids = dict.fromkeys([*range(_LABEL_IDS), VOID], VOID)
        ids |= {number: place for place, (_, number, _) in enumerate(_CLASSES)}
    return Table(tuple(name for name, _, _ in _CLASSES), ids, {}, tuple(c for *_, c in _CLASSES))
