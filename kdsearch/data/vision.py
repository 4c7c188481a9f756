"""torchvision's data sets by name, downloaded once into `<cache>/downloads/<name>/`.

Importing this module only lists the names; torchvision is imported when one is read.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Protocol, TypeAlias

from kdsearch.data.base import Sample, Source
from kdsearch.downloads import announce
from kdsearch.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

Arguments: TypeAlias = Mapping[str, str | bool]


class _Items(Protocol):
    """What torchvision calls a data set."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Image, int]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Set:
    """A class of torchvision.datasets, with the arguments that name each split.

    classes: the names where the class has no attribute `classes`.
    """

    kind: str
    splits: Mapping[str, Arguments]
    classes: tuple[str, ...] = ()
    channels: int = 3
    flip: bool = True


_BY_FLAG: Mapping[str, Arguments] = {"train": {"train": True}, "test": {"train": False}}
_BY_NAME: Mapping[str, Arguments] = {"train": {"split": "train"}, "test": {"split": "test"}}
_ALL_THREE: Mapping[str, Arguments] = {
    split: {"split": split} for split in ("train", "val", "test")
}
_DIGITS = tuple(map(str, range(10)))

SETS: Mapping[str, _Set] = {
    "cifar10": _Set(kind="CIFAR10", splits=_BY_FLAG),
    "cifar100": _Set(kind="CIFAR100", splits=_BY_FLAG),
    "dtd": _Set(kind="DTD", splits=_ALL_THREE),
    "eurosat": _Set(kind="EuroSAT", splits={"train": {}}),
    "fashionmnist": _Set(kind="FashionMNIST", splits=_BY_FLAG, channels=1),
    "fgvcaircraft": _Set(kind="FGVCAircraft", splits=_ALL_THREE),
    "flowers102": _Set(kind="Flowers102", splits=_ALL_THREE),
    "food101": _Set(kind="Food101", splits=_BY_NAME),
    "gtsrb": _Set(
        kind="GTSRB", splits=_BY_NAME, classes=tuple(f"{i:05d}" for i in range(43)), flip=False
    ),
    "kmnist": _Set(kind="KMNIST", splits=_BY_FLAG, channels=1, flip=False),
    "mnist": _Set(kind="MNIST", splits=_BY_FLAG, channels=1, flip=False),
    "oxfordiiitpet": _Set(
        kind="OxfordIIITPet", splits={"train": {"split": "trainval"}, "test": {"split": "test"}}
    ),
    "stl10": _Set(kind="STL10", splits=_BY_NAME),
    "svhn": _Set(kind="SVHN", splits=_BY_NAME, classes=_DIGITS, flip=False),
    "usps": _Set(kind="USPS", splits=_BY_FLAG, classes=_DIGITS, channels=1, flip=False),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Split:
    """One split's items as samples."""

    name: str
    items: _Items
    root: Path

    def __iter__(self) -> Iterator[Sample]:
        for index in range(len(self.items)):
            try:
                image, label = self.items[index]
            except OSError as error:
                raise DataError(
                    f"{self.name}: image {index} cannot be read ({error}); "
                    f"delete {self.root} to download it again"
                ) from error
            yield Sample(name=f"{self.name}:{index}", label=int(label), content=image)


def read(name: str, *, downloads: Path) -> Source:
    """Return the set called `name`, downloading it first where `downloads` lacks it."""
    known = SETS[name]
    root = downloads / name
    try:
        if not root.is_dir():
            announce(f"{name} to {root}")
            _download(known, root)
        items = _build(known, root)
    except (
        OSError,
        RuntimeError,
        HTTPException,
        EOFError,
        tarfile.TarError,
        zipfile.BadZipFile,
    ) as error:
        reason = str(error).strip().splitlines()
        raise DataError(
            f"{name}: cannot be downloaded to {root}: {reason[-1] if reason else repr(error)}\n"
            f"Pass a folder (train/CLASS/*.jpg) or Parquet files instead, or copy "
            f"torchvision's files of {known.kind} into that folder"
        ) from error
    return Source(
        name=name,
        classes=known.classes or tuple(map(str, getattr(items["train"], "classes", ()))),
        splits={
            split: _Split(name=f"{name}/{split}", items=found, root=root)
            for split, found in items.items()
        },
        content=[
            (path.relative_to(root).as_posix(), path)
            for path in sorted(root.rglob("*"))
            if path.is_file()
        ],
        channels=known.channels,
        flip=known.flip,
    )


def _download(known: _Set, root: Path) -> None:
    """Download to a temporary folder first: torchvision takes half a data set for a whole one."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=root.parent, prefix=f".{root.name}-") as folder:
        part = Path(folder) / root.name
        part.mkdir()
        _build(known, part)
        part.rename(root)


def _build(known: _Set, root: Path) -> dict[str, _Items]:
    from torchvision import datasets

    kind = getattr(datasets, known.kind)
    with redirect_stdout(io.StringIO()):  # stdout is for results; failures are raised as well
        return {
            split: kind(root=str(root), download=True, **arguments)
            for split, arguments in known.splits.items()
        }
