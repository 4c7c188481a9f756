"""A folder of images: `train/CLASS/*`, `val/CLASS/*`, `test/CLASS/*`, by these or similar names.

Only train is required. A class has all images in its folder and below, through links too.
`unlabeled/` holds images without a class, in folders of any name and depth. Whatever else lies
there is left out, with the reason.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from unicodedata import normalize

from kdsearch.data.base import UNLABELLED, Sample, Source
from kdsearch.errors import DataError, did_you_mean

SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png"),
    *(".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
SPLITS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
    "unlabeled": ("unlabeled", "unlabelled"),
}
_SYSTEM = ("__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information")
_SYSTEM_FILES = (".ds_store", "thumbs.db", "desktop.ini")
_FLAT = "outside of a class folder"

LeftOut = defaultdict[str, list[str]]


def is_image(name: str) -> bool:
    """Return whether a file name is that of an image; upper or lower case."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def find_splits(root: Path) -> dict[str, Path]:
    """Return the folders of the splits, in their order. Raises DataError for two of one split."""
    found: dict[str, Path] = {}
    folders = sorted(path for path in root.iterdir() if path.is_dir())
    for split, names in SPLITS.items():
        named = [path for path in folders if path.name.lower() in names]
        if len(named) > 1:
            both = " and ".join(path.name for path in named)
            raise DataError(f"{root}: {both} are one split, {split}; keep one of them")
        if named:
            found[split] = named[0]
    return found


def read(root: Path) -> Source:
    """Return the images under `root`, which holds `train/`; classes are train's, sorted.

    Raises DataError for a class of train or an `unlabeled/` without images, and for a class that
    train lacks.
    """
    folders = find_splits(root)
    left_out = _outside(root, folders)
    found = {
        split: _classes(folder, left_out)
        for split, folder in folders.items()
        if split != "unlabeled"
    }
    classes = tuple(sorted(found["train"]))
    if not classes:
        raise DataError(f"{folders['train']}: holds no class folders; expected train/CLASS/*.jpg")
    _require_images(folders["train"], found["train"], left_out)
    for split, by_class in found.items():
        _require_classes(folders[split], by_class, classes)
        has_flat = any(Path(path).parent == folders[split] for path in left_out[_FLAT])
        if not has_flat:  # as a test split without labels is, which is then left out
            images = [path for each in by_class.values() for path in each]
            _require_images(root, {folders[split].name: images}, left_out)
    files = {
        split: [
            (path, label) for label, name in enumerate(classes) for path in images.get(name, ())
        ]
        for split, images in found.items()
    }
    if "unlabeled" in folders:
        images = _images(folders["unlabeled"], left_out)
        _require_images(root, {folders["unlabeled"].name: images}, left_out)
        files["unlabeled"] = [(path, UNLABELLED) for path in sorted(images)]
    files = {split: pairs for split, pairs in files.items() if pairs}
    below = len((root / "train").as_posix()) - len("train")  # where names below root begin
    named = {
        split: [(_printable(path.as_posix()[below:]), path, label) for path, label in pairs]
        for split, pairs in files.items()
    }
    return Source(
        name=_printable(root.resolve().name),
        classes=classes,
        splits={
            split: [Sample(name=name, label=label, content=path) for name, path, label in rows]
            for split, rows in named.items()
        },
        content=[(name, path) for rows in named.values() for name, path, _ in rows],
        left_out={
            reason: [_printable(path[below:]) for path in paths]
            for reason, paths in left_out.items()
            if paths
        },
    )


def _outside(root: Path, folders: Mapping[str, Path]) -> LeftOut:
    """Return what is next to the folders of the splits."""
    left_out: LeftOut = defaultdict(list)
    for path in sorted(root.iterdir()):
        if path.is_dir() and path not in folders.values() and not _is_hidden(path.name):
            left_out["folders that are no split"].append(path.as_posix())
        elif path.is_file() and is_image(path.name):
            left_out["images outside of a split"].append(path.as_posix())
    return left_out


def _classes(folder: Path, left_out: LeftOut) -> dict[str, list[Path]]:
    """Return the images of each class; a name is in Unicode's composed form."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not _is_hidden(path.name):
            images = found.setdefault(_class_name(path), [])
            images += _images(path, left_out)
            images.sort()
        elif path.is_dir():
            left_out["hidden or of the system"].append(path.as_posix())
        elif is_image(path.name):
            left_out[_FLAT].append(path.as_posix())
    return found


def _class_name(folder: Path) -> str:
    try:
        folder.name.encode()
    except UnicodeEncodeError:
        shown = _printable(folder.as_posix())
        raise DataError(f"{shown}: the name of this class is not UTF-8; rename it") from None
    return normalize("NFC", folder.name)


def _images(folder: Path, left_out: LeftOut) -> list[Path]:
    """Return the images in a folder and all folders below it; a folder is read once."""
    found: list[Path] = []
    seen, waiting = set(), [folder]
    while waiting:
        inner = waiting.pop()
        state = inner.stat()
        if (state.st_dev, state.st_ino) in seen:
            left_out["links back to a folder that holds them"].append(inner.as_posix())
            continue
        seen.add((state.st_dev, state.st_ino))
        with os.scandir(inner) as entries:  # knows files from folders without a call for each
            for entry in sorted(entries, key=lambda entry: entry.name):
                if reason := _reason(entry):
                    left_out[reason].append((inner / entry.name).as_posix())
                elif entry.is_dir():
                    waiting.append(inner / entry.name)
                elif is_image(entry.name):
                    found.append(inner / entry.name)
    return found


def _reason(entry: os.DirEntry[str]) -> str:
    """Return why an entry of a class folder is left out; '' for a folder, an image or clutter."""
    name = entry.name.lower()
    if name in _SYSTEM_FILES:
        return ""
    if _is_hidden(name):
        return "hidden or of the system"
    if entry.is_dir():
        return ""
    if not entry.is_file():
        return "broken links" if entry.is_symlink() else "special files"
    suffix = Path(name).suffix
    return "" if is_image(name) else f"{suffix} files" if suffix else "files without a suffix"


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM


def _printable(text: str) -> str:
    """Return a path with what is no UTF-8 escaped."""
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def _require_images(folder: Path, by_class: Mapping[str, list[Path]], left_out: LeftOut) -> None:
    empty = [name for name, images in by_class.items() if not images]
    if not empty:
        return
    inside = f"{(folder / empty[0]).as_posix()}/"
    found = {
        reason: sum(path.startswith(inside) for path in paths) for reason, paths in left_out.items()
    }
    why = ", ".join(f"{count} {reason}" for reason, count in found.items() if count)
    raise DataError(
        f"{folder}: no images in {few(empty, 10)}{f' ({why})' if why else ''}; "
        f"remove the folder or add files ({', '.join(SUFFIXES)})"
    )


def _require_classes(
    folder: Path, by_class: Mapping[str, list[Path]], classes: tuple[str, ...]
) -> None:
    unknown = [name for name, images in by_class.items() if images and name not in classes]
    if unknown:
        named = few([f"{name!r}{did_you_mean(name, classes)}" for name in unknown], 10)
        raise DataError(f"{folder}: train has no class {named}; its classes: {few(classes, 10)}")


def few(names: Sequence[str], count: int = 3) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more:,} more" if more > 0 else "")
