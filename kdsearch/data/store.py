"""Decode a source once, into `<cache>/data/<key>/`, and map it into memory ever after.

The key is a digest of the source's bytes, so a changed file makes a new store. All splits lie in
one file, one after another, so that any of their images together are rows of one tensor. A store
appears whole (written elsewhere, then renamed) and is built again if damaged. Neither the source's
bytes nor the store's checksums are read again while the files stay as they are.
"""

from __future__ import annotations

import fcntl
import json
import logging
import mmap
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from itertools import accumulate, islice, pairwise
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from kdsearch.data.base import ImageSet, Sample, Source
from kdsearch.data.decode import UnreadableError, decode, dimensions, strict_pillow
from kdsearch.data.seen import recall, remember, state_of
from kdsearch.data.sizes import Size, as_size, scaled_size
from kdsearch.errors import DataError

VERSION = 1
MAX_UNREADABLE = 0.01
IMAGES, LABELS = "images.npy", "labels.npy"
_CHUNK = 512  # images decoded between two writes
_TICK_S = 0.02  # the clock of a local file system ticks in it: every 10 ms on older Linux
# Else Linux refuses to map more than there is memory. Python names it since 3.13.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_THREADS = min(16, os.cpu_count() or 1)
_log = logging.getLogger(__name__)
Label: TypeAlias = int | float | NDArray[Any]
T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A source, decoded; the images are mapped from disk, copied only where they are written.

    images: those of all splits; ranges: which of them each split is.
    """

    folder: Path
    images: ImageSet
    ranges: Mapping[str, slice]
    skipped: tuple[str, ...]

    @property
    def key(self) -> str:
        """Return the digest of what was decoded, and how."""
        return self.folder.name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Meta:
    """Content of `meta.json`; crc32 is of whole files, by name."""

    version: int
    classes: tuple[str, ...]
    skipped: tuple[str, ...]
    channels: int
    size: int | Size
    counts: dict[str, int]
    crc32: dict[str, int]


_META = TypeAdapter(_Meta)


def open_store(source: Source, *, cache_dir: Path, size: int | None) -> Stored:
    """Return the source's images, decoded at the first call.

    size: longer side in pixels. None takes the canvas of the source; without one the images' own
    where all are equal squares of at most 64 pixels, else the median shorter side, at most 224,
    rounded down to a multiple of 32.
    Raises DataError when more than 1 % of a split cannot be read or the disk refuses.
    """
    if size is not None and size < 1:
        raise DataError(f"{source.name}: size {size} is not a number of pixels")
    folder = cache_dir / "data" / _key(source, size, cache_dir / "sources")
    if _damage(folder, source):
        with _locked(folder):
            damage = _damage(folder, source)  # another process may just have built it
            if damage and folder.exists():
                _log.warning("%s is damaged and is built again: %s", folder, damage)
            if damage:
                _build(folder, source, size)
    meta = _read_meta(folder)
    ends = list(accumulate(meta.counts.values(), initial=0))
    ranges = {name: slice(*pair) for name, pair in zip(meta.counts, pairwise(ends), strict=True)}
    images = ImageSet(_mapped(folder / IMAGES), torch.from_numpy(np.load(folder / LABELS)))
    assert len(images) == len(images.images) == ends[-1]
    return Stored(folder=folder, images=images, ranges=ranges, skipped=meta.skipped)


def _key(source: Source, size: int | None, known: Path) -> str:
    """Return a digest of the names and bytes of the source, and of how they are decoded.

    known: the folder where keys are remembered, by the state of the files.
    """
    canvas = () if source.canvas is None else (source.canvas,)
    how = repr((VERSION, size, source.channels, *canvas)).encode()
    with _reading(source.name):
        state, is_settled = state_of([("", how), *source.content])
    key = recall(known / state)
    if key is not None:
        return key
    digest = blake2b(how, digest_size=16)
    for name, part in _in_threads(_digest, source.content):
        digest.update(repr((name, part)).encode())
    if is_settled:
        remember(known / state, digest.hexdigest())
    return digest.hexdigest()


def _digest(part: tuple[str, Path | bytes]) -> tuple[str, str]:
    name, content = part
    digest = blake2b(digest_size=16)
    if isinstance(content, bytes):
        digest.update(content)
    else:
        with _reading(content), content.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return name, digest.hexdigest()


@contextmanager
def _reading(what: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or what}: cannot be read: {error.strerror}") from error


def _read_meta(folder: Path) -> _Meta:
    return _META.validate_json((folder / "meta.json").read_bytes())


def _damage(folder: Path, source: Source) -> str:
    """Return the first reason not to trust a store, or an empty string."""
    try:
        meta = _read_meta(folder)
        if meta.version != VERSION or meta.classes != source.classes:
            return "meta.json is of another source"
        if set(meta.counts) != set(source.splits) or set(meta.crc32) != {IMAGES, LABELS}:
            return "meta.json does not list the splits and files"
        state, is_settled = _state(folder)
        if recall(folder / "checked") == state:
            return ""
        wrong = [name for name in meta.crc32 if _crc32(folder / name) != meta.crc32[name]]
        if is_settled and not wrong:
            remember(folder / "checked", state)
        return f"checksum of {' and '.join(wrong)}" if wrong else ""
    except (OSError, ValidationError) as error:
        return str(error)


def _state(folder: Path) -> tuple[str, bool]:
    return state_of((name, folder / name) for name in (IMAGES, LABELS, "meta.json"))


def _mapped(path: Path) -> Tensor:
    """Return the array of an .npy file; what is written to it is copied first, and never kept."""
    with path.open("rb") as file:
        assert np.lib.format.read_magic(file) == (1, 0)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
        how = {"flags": mmap.MAP_PRIVATE | _NORESERVE, "prot": mmap.PROT_READ | mmap.PROT_WRITE}
        pages = mmap.mmap(file.fileno(), 0, **how)
    return torch.from_numpy(np.ndarray(shape, dtype, pages, start))


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
            shape = _size_of(source, size)
            counts, skipped = _write_images(part, source, shape)
        with _writing(part):
            meta = _Meta(
                version=VERSION,
                classes=source.classes,
                skipped=tuple(skipped),
                channels=source.channels,
                size=shape[0] if shape[0] == shape[1] else shape,
                counts=counts,
                crc32={name: _crc32(part / name) for name in (IMAGES, LABELS)},
            )
            (part / "meta.json").write_text(json.dumps(asdict(meta), indent=1), encoding="utf-8")
            time.sleep(_TICK_S)  # from now on any change shows in the files' times
            remember(part / "checked", _state(part)[0])
            if folder.exists():
                shutil.rmtree(folder)
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _size_of(source: Source, size: int | None) -> Size:
    """Return (H, W) of the stored images."""
    if source.canvas is not None:
        return scaled_size(source.canvas, size or 0)
    return as_size(_natural_size(source) if size is None else size)


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


def _write_images(part: Path, source: Source, size: Size) -> tuple[dict[str, int], list[str]]:
    """Write images and labels; return how many each split has, and the names of the unreadable."""
    shape = (source.channels, *size)
    counts: dict[str, int] = {}
    labels: list[Label] = []
    skipped: list[str] = []
    with _writing(part), (part / IMAGES).open("wb") as file:
        _write_header(file, (0, *shape))
        for split, samples in source.splits.items():
            found, unreadable = _write_split(file, samples, source.channels, size)
            total = len(found) + len(unreadable)
            _check_unreadable(f"{source.name}/{split}", unreadable, total)
            counts[split] = len(found)
            labels += found
            skipped += [name for name, _ in unreadable]
        file.seek(0)
        _write_header(file, (len(labels), *shape))
        np.save(part / LABELS, _as_array(labels))
    return counts, skipped


def _as_array(labels: list[Label]) -> NDArray[Any]:
    """Return labels [N, ...]: whole numbers as int64, others as float32, arrays as they are."""
    values = np.array(labels)
    return values.astype(np.float32) if values.dtype == np.float64 else values


def _write_split(
    file: BinaryIO, samples: Iterable[Sample], channels: int, size: Size
) -> tuple[list[Label], list[tuple[str, UnreadableError]]]:
    """Append one split's images; return their labels, and what cannot be read and why."""
    labels: list[Label] = []
    unreadable: list[tuple[str, UnreadableError]] = []
    decoded = _in_threads(partial(_decode, size=size, channels=channels), samples)
    while chunk := list(islice(decoded, _CHUNK)):
        for sample, pixels in chunk:
            if isinstance(pixels, UnreadableError):
                unreadable.append((sample.name, pixels))
            else:
                labels.append(sample.label)
                file.write(pixels.tobytes())
    return labels, unreadable


def _decode(
    sample: Sample, *, size: Size, channels: int
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
