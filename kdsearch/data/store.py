"""Decode a source once, into `<cache>/data/<key>/`, and map it into memory ever after.

The key is a digest of the source's bytes, so a changed file makes a new store. A store appears
whole (written beside, then renamed), is checked at every opening, and built again if damaged.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from statistics import median
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from kdsearch.data.base import ImageSet, Sample, Source
from kdsearch.data.decode import UnreadableError, decode, dimensions, strict_pillow
from kdsearch.errors import DataError

VERSION = 1
MAX_UNREADABLE = 0.01
_CHUNK = 512  # images decoded between two writes
_THREADS = min(16, os.cpu_count() or 1)
_log = logging.getLogger(__name__)
T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A source, decoded; the images are mapped from disk, copied only where they are written."""

    key: str
    splits: Mapping[str, ImageSet]
    skipped: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Meta:
    """What `meta.json` says; crc32 is of whole files, by name."""

    version: int
    classes: tuple[str, ...]
    skipped: tuple[str, ...]
    channels: int
    size: int
    counts: dict[str, int]
    crc32: dict[str, int]


def open_store(source: Source, *, cache_dir: Path, size: int | None) -> Stored:
    """Return the source's images, decoded to size x size pixels at the first call.

    size: None takes the images' own where all are equal squares of at most 64 pixels, else the
    median shorter side, at most 224, rounded down to a multiple of 32.
    Raises DataError when more than 1 % of a split cannot be read or the disk refuses.
    """
    if size is not None and size < 1:
        raise DataError(f"{source.name}: size {size} is not a number of pixels")
    folder = cache_dir / "data" / _key(source, size)
    if _damage(folder, source):
        with _locked(folder):
            damage = _damage(folder, source)  # another process may just have built it
            if damage and folder.exists():
                _log.warning("%s is damaged and is built again: %s", folder, damage)
            if damage:
                _build(folder, source, size)
    meta = _read_meta(folder)
    splits = {name: _map(folder, name, count) for name, count in meta.counts.items()}
    return Stored(key=folder.name, splits=splits, skipped=meta.skipped)


def _key(source: Source, size: int | None) -> str:
    """Return a digest of the names and bytes of the source, and of how they are decoded."""
    digest = blake2b(repr((VERSION, size, source.channels)).encode(), digest_size=16)
    for name, part in _in_threads(_digest, source.content):
        digest.update(repr((name, part)).encode())
    return digest.hexdigest()


def _digest(part: tuple[str, Path | bytes]) -> tuple[str, str]:
    name, content = part
    digest = blake2b(digest_size=16)
    if isinstance(content, bytes):
        digest.update(content)
    else:
        try:
            with content.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise DataError(f"{content}: cannot be read: {error.strerror}") from error
    return name, digest.hexdigest()


def _read_meta(folder: Path) -> _Meta:
    return TypeAdapter(_Meta).validate_json((folder / "meta.json").read_bytes())


def _damage(folder: Path, source: Source) -> str:
    """Return the first reason not to trust a store, or an empty string."""
    try:
        meta = _read_meta(folder)
        if meta.version != VERSION or meta.classes != source.classes:
            return "meta.json is of another source"
        names = {name for split in source.splits for name in _files(split)}
        if set(meta.counts) != set(source.splits) or set(meta.crc32) != names:
            return "meta.json does not list the splits"
        wrong = (name for name in sorted(names) if _crc32(folder / name) != meta.crc32[name])
        return next((f"checksum of {name}" for name in wrong), "")
    except (OSError, ValidationError) as error:
        return str(error)


def _map(folder: Path, split: str, count: int) -> ImageSet:
    images, labels = (np.load(folder / name, mmap_mode="c") for name in _files(split))
    assert len(images) == len(labels) == count
    return ImageSet(torch.from_numpy(images), torch.from_numpy(labels))


def _files(split: str) -> tuple[str, str]:
    return f"{split}.npy", f"{split}_labels.npy"


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _build(folder: Path, source: Source, size: int | None) -> None:
    """Decode everything into `<folder>.tmp`, then put it in place; the caller holds the lock."""
    part = folder.with_name(folder.name + ".tmp")
    with _writing(part):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
    try:
        with strict_pillow():
            side = _natural_size(source) if size is None else size
            counts, skipped = {}, []
            for split, samples in source.splits.items():
                counts[split], bad = _write_split(part, split, samples, source, side)
                skipped += bad
        with _writing(part):
            meta = _Meta(
                version=VERSION,
                classes=source.classes,
                skipped=tuple(skipped),
                channels=source.channels,
                size=side,
                counts=counts,
                crc32={path.name: _crc32(path) for path in sorted(part.iterdir())},
            )
            (part / "meta.json").write_text(json.dumps(asdict(meta), indent=1), encoding="utf-8")
            if folder.exists():
                shutil.rmtree(folder)
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _natural_size(source: Source) -> int:
    found = [size for size in _in_threads(_dimensions, source.splits["train"]) if size]
    if not found:
        raise DataError(f"{source.name}: none of the images of train can be read")
    width, height = found[0]
    if width == height <= 64 and set(found) == {found[0]}:
        return width
    return max(32, min(224, int(median(min(size) for size in found))) // 32 * 32)


def _dimensions(sample: Sample) -> tuple[int, int] | None:
    try:
        return dimensions(sample.content)
    except UnreadableError:
        return None  # decoding meets it again, and counts and names it there


def _write_split(
    part: Path, split: str, samples: Iterable[Sample], source: Source, size: int
) -> tuple[int, list[str]]:
    """Write one split's images and labels; return how many, and the names of the unreadable."""
    shape = (source.channels, size, size)
    labels: list[int] = []
    unreadable: list[tuple[str, UnreadableError]] = []
    images_path, labels_path = (part / name for name in _files(split))
    with _writing(part), images_path.open("wb") as file:
        _write_header(file, (0, *shape))
        decoded = _in_threads(partial(_decode, size=size, channels=source.channels), samples)
        while chunk := list(islice(decoded, _CHUNK)):
            for sample, pixels in chunk:
                if isinstance(pixels, UnreadableError):
                    unreadable.append((sample.name, pixels))
                else:
                    labels.append(sample.label)
                    file.write(pixels.tobytes())
        file.seek(0)
        _write_header(file, (len(labels), *shape))
        np.save(labels_path, np.array(labels, np.int64))
    _check_unreadable(f"{source.name}/{split}", unreadable, len(labels) + len(unreadable))
    return len(labels), [name for name, _ in unreadable]


def _decode(
    sample: Sample, *, size: int, channels: int
) -> tuple[Sample, NDArray[np.uint8] | UnreadableError]:
    try:
        return sample, decode(sample.content, size=size, channels=channels)
    except UnreadableError as error:
        return sample, error


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write the .npy header, which keeps its length when only the number of images changes.

    The file then grows by plain writes: a full disk is an error, where a memory map would crash.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _check_unreadable(
    where: str, unreadable: list[tuple[str, UnreadableError]], total: int
) -> None:
    if not total:
        raise DataError(f"{where}: holds no images")
    if len(unreadable) > MAX_UNREADABLE * total:
        first = "; ".join(f"{name}: {reason}" for name, reason in unreadable[:3])
        raise DataError(
            f"{where}: {len(unreadable)} of {total} images cannot be read, more than "
            f"{MAX_UNREADABLE:.0%}: {first}{'; ...' if len(unreadable) > 3 else ''}. "
            f"Mend or remove them"
        )
    for name, reason in unreadable:
        _log.warning("%s: skipped %s: %s", where, name, reason)


def _in_threads(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Map in order, reading ahead by one chunk, so that a long source never sits in memory."""
    rest = iter(items)
    with ThreadPoolExecutor(_THREADS) as pool:
        while chunk := list(islice(rest, _CHUNK)):
            yield from pool.map(function, chunk)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time build a store; the others wait, then find it built."""
    with _writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_name(folder.name + ".lock").open("w")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write decoded images to {folder}: {error.strerror}; "
            "free some space there or choose another cache folder"
        ) from error
