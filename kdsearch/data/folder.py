"""A folder of images: `train/CLASS/*`, `val/CLASS/*` (or `valid`, `validation`), `test/CLASS/*`.

Only train is required. `unlabeled/` holds images without a class, in folders of any name and
depth. Hidden files, and files without an image's suffix, are not images.
"""

from __future__ import annotations

import os
from pathlib import Path

from kdsearch.data.base import UNLABELLED, Sample, Source
from kdsearch.errors import DataError, did_you_mean

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_UNLABELED = ("unlabeled", "unlabelled")
_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


def is_image(name: str) -> bool:
    """Return whether a file name is that of an image; upper or lower case."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def read(root: Path) -> Source:
    """Return the images under `root`, which holds `train/`; classes are train's, sorted.

    Raises DataError for a class or an `unlabeled/` without images, a class that train lacks, and
    folders that are links: to outside of `root`, or any below `unlabeled/`.
    """
    folders = {split: _split_folder(root, names) for split, names in _SPLITS.items()}
    found = {
        split: {path.name: _images(path, root) for path in _folders(folder)}
        for split, folder in folders.items()
        if folder is not None
    }
    classes = tuple(sorted(found["train"]))
    if not classes:
        raise DataError(f"{root / 'train'}: holds no class folders; expected train/CLASS/*.jpg")
    for split, by_class in found.items():
        _check_classes(folders[split] or root, by_class, classes)
    files = {
        split: [
            (path, label) for label, name in enumerate(classes) for path in images.get(name, ())
        ]
        for split, images in found.items()
    }
    unlabeled = _split_folder(root, _UNLABELED)
    if unlabeled is not None:
        files["unlabeled"] = [(path, UNLABELLED) for path in _all_images(unlabeled, root)]
    below = len((root / "train").as_posix()) - len("train")  # where names below root begin
    return Source(
        name=root.resolve().name,
        classes=classes,
        splits={
            split: [
                Sample(name=path.as_posix()[below:], label=label, content=path)
                for path, label in pairs
            ]
            for split, pairs in files.items()
        },
        content=[(path.as_posix()[below:], path) for pairs in files.values() for path, _ in pairs],
    )


def _split_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    found = [root / name for name in names if (root / name).is_dir()]
    if len(found) > 1:
        raise DataError(f"{root}: {' and '.join(p.name for p in found)} are one split; keep one")
    return found[0] if found else None


def _folders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def _images(folder: Path, root: Path) -> list[Path]:
    if not folder.resolve().is_relative_to(root.resolve()):
        raise DataError(
            f"{folder}: is a link to {folder.resolve()}, outside of {root}; copy the images"
        )
    with os.scandir(folder) as entries:  # knows files from folders without a call for each
        names = [entry.name for entry in entries if is_image(entry.name) and entry.is_file()]
    return [folder / name for name in sorted(names)]


def _all_images(folder: Path, root: Path) -> list[Path]:
    """Return the images in a folder and all folders below it, sorted."""
    found = _images(folder, root)
    below = _folders(folder)
    while below:
        inner = below.pop()
        if inner.is_symlink():
            raise DataError(f"{inner}: is a link to {inner.resolve()}; copy the images")
        found += _images(inner, root)
        below += _folders(inner)
    if not found:
        raise DataError(
            f"{folder}: no images in it or below; "
            f"remove the folder or add files ({', '.join(SUFFIXES)})"
        )
    return sorted(found)


def _check_classes(folder: Path, by_class: dict[str, list[Path]], classes: tuple[str, ...]) -> None:
    unknown = [name for name in by_class if name not in classes]
    if unknown:
        named = ", ".join(f"{name!r}{did_you_mean(name, classes)}" for name in unknown)
        raise DataError(f"{folder}: train has no class {named}; its classes: {', '.join(classes)}")
    empty = [name for name, images in by_class.items() if not images]
    if empty:
        raise DataError(
            f"{folder}: no images in {', '.join(empty)}; "
            f"remove the folder or add files ({', '.join(SUFFIXES)})"
        )
