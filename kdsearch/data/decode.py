"""Decode a source into the files of a store: pixels, labels and digests, split after split."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from kdsearch import atomic
from kdsearch.data.base import Placed, Sample, Source
from kdsearch.data.pixels import UnreadableError, decode, dimensions
from kdsearch.data.sizes import Decoding, Size, as_size, scaled_size, whole_strides
from kdsearch.errors import DataError

MAX_UNREADABLE = 0.01
IMAGES, LABELS, DIGESTS = "images.npy", "labels.npy", "digests.npy"
FILES = (IMAGES, LABELS, DIGESTS)
_MAX_LONGER = 512  # px, of the canvas of padded images
_CHUNK = 512  # images decoded ahead
_SHOWN = 3  # unreadable images in a message
_THREADS = min(16, os.cpu_count() or 1)
_log = logging.getLogger(__name__)
Label: TypeAlias = int | float | NDArray[Any]
T = TypeVar("T")
S = TypeVar("S")


def size_of(source: Source, decoding: Decoding) -> Size:
    """Return (H, W) of the stored images."""
    if source.canvas is not None:
        return scaled_size(source.canvas, decoding.side or 0)
    if source.is_padded:
        return _padded_size(source, decoding)
    return as_size(_natural_size(source, decoding) if decoding.side is None else decoding.side)


def _padded_size(source: Source, decoding: Decoding) -> Size:
    """Return a canvas of the shape of the median image, its sides multiples of 32, rounded up.

    Its longer side is `side`, else that of the image, at most 512.
    """
    width, height = (
        median(sides) for sides in zip(*_sizes_of_train(source, decoding), strict=True)
    )
    longer = decoding.side or min(_MAX_LONGER, max(height, width))
    scale = whole_strides(longer) / max(height, width)
    return whole_strides(height * scale), whole_strides(width * scale)


def _sizes_of_train(source: Source, decoding: Decoding) -> list[tuple[int, int]]:
    """Return (width, height) of the images that can be read."""
    read = partial(_dimensions, max_megapixels=decoding.max_megapixels)
    found = [size for size in in_threads(read, source.splits["train"]) if isinstance(size, tuple)]
    if not found:
        first = next(iter(source.splits["train"]), None)
        why = "" if first is None else f" ({first.name}: {read(first)})"
        raise DataError(f"{source.name}: none of the images of train can be read{why}")
    return found


def _natural_size(source: Source, decoding: Decoding) -> int:
    found = _sizes_of_train(source, decoding)
    width, height = found[0]
    if width == height <= 64 and set(found) == {found[0]}:
        return width
    side = max if decoding.fit == "pad" else min
    return max(32, min(224, int(median(side(size) for size in found))) // 32 * 32)


def _dimensions(sample: Sample, *, max_megapixels: float) -> tuple[int, int] | UnreadableError:
    try:
        return dimensions(sample.content, max_megapixels=max_megapixels)
    except UnreadableError as error:
        return error  # decoding meets it again, and counts and names it there


def write_images(
    part: Path, source: Source, size: Size, decoding: Decoding
) -> tuple[dict[str, int], dict[str, str], float]:
    """Write images, labels and digests.

    Return how many each split has, the unreadable with the reasons, and the median share of a
    training image that was cut away.
    """
    shape = (source.channels, *size)
    counts: dict[str, int] = {}
    skipped: dict[str, str] = {}
    labels: list[Label] = []
    digests: list[int] = []
    cut = 0.0
    read = partial(_decode, size=size, channels=source.channels, decoding=decoding)
    with writing(part), (part / IMAGES).open("wb") as file:
        _write_header(file, (0, *shape))
        for split, samples in source.splits.items():
            unreadable, cuts = {}, []
            for name, found in in_threads(read, samples):
                if isinstance(found, UnreadableError):
                    unreadable[name] = str(found)
                    continue
                file.write(found.pixels)
                labels.append(found.label)
                digests.append(found.digest)
                cuts.append(found.cut)
            counts[split] = len(cuts)
            where = f"{source.name}/{split}"
            _check_unreadable(where, unreadable, len(cuts) + len(unreadable), part.parent)
            skipped |= unreadable
            if split == "train":
                cut = round(median(cuts), 4)
        file.seek(0)
        _write_header(file, (len(labels), *shape))
        np.save(part / LABELS, _as_array(labels))
        np.save(part / DIGESTS, np.array(digests, np.int64))
    return counts, skipped, cut


def _as_array(labels: list[Label]) -> NDArray[Any]:
    """Return labels [N, ...]: whole numbers as int64, others as float32, arrays as they are."""
    values = np.array(labels)
    return values.astype(np.float32) if values.dtype == np.float64 else values


class _Decoded(NamedTuple):
    """An image's label, its pixels, their digest, and the share of it that was cut away."""

    label: Label
    pixels: bytes
    digest: int
    cut: float


def _decode(
    sample: Sample, *, size: Size, channels: int, decoding: Decoding
) -> tuple[str, _Decoded | UnreadableError]:
    """Return the name of a sample, and what it is decoded to or the reason why it is not."""
    try:
        pixels, cut = decode(
            sample.content,
            size=size,
            channels=channels,
            fit=decoding.fit,
            max_megapixels=decoding.max_megapixels,
        )
        label = sample.label
        if isinstance(label, Placed):
            label = label.decode(sample.content, size)
    except UnreadableError as error:
        return sample.name, error
    content = pixels.tobytes()
    digest = int.from_bytes(blake2b(content, digest_size=8).digest(), "big", signed=True)
    return sample.name, _Decoded(label, content, digest, cut)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """Write the .npy header, which keeps its length when only the number of images changes.

    The file then grows by plain writes: a full disk is an error, where a memory map would crash.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _check_unreadable(where: str, unreadable: dict[str, str], total: int, folder: Path) -> None:
    """Raise DataError where too many cannot be read; all of them are listed in a file."""
    if not total:
        raise DataError(f"{where}: holds no images")
    lines = [f"{name}: {reason}" for name, reason in unreadable.items()]
    if len(lines) > MAX_UNREADABLE * total:
        rest = ""
        if len(lines) > _SHOWN:
            listed = folder / "unreadable.txt"
            atomic.write(listed, "\n".join(lines) + "\n")
            rest = f"; all of them: {listed}"
        raise DataError(
            f"{where}: {len(lines)} of {total} images cannot be read, more than "
            f"{MAX_UNREADABLE:.0%}: {'; '.join(lines[:_SHOWN])}{rest}. Mend or remove them"
        )
    for line in lines:
        _log.warning("%s: skipped %s", where, line)


def in_threads(function: Callable[[S], T], items: Iterable[S]) -> Iterator[T]:
    """Map in order, reading ahead by one chunk, so that a long source never sits in memory."""
    rest = iter(items)
    with ThreadPoolExecutor(_THREADS) as pool:
        while chunk := list(islice(rest, _CHUNK)):
            yield from pool.map(function, chunk)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses into DataError."""
    try:
        yield
    except OSError as error:
        hint = "free some space there" if error.errno in _FULL else "give another --out"
        raise DataError(
            f"cannot write decoded images to {folder}: {error.strerror}; {hint}"
        ) from error
