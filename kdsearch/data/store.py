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
import shutil
import sys
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b, file_digest
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from kdsearch.data.base import ImageSet, Source
from kdsearch.data.decode import (
    DIGESTS,
    FILES,
    IMAGES,
    LABELS,
    in_threads,
    size_of,
    write_images,
    writing,
)
from kdsearch.data.pixels import strict_pillow
from kdsearch.data.seen import recall, remember, state_of
from kdsearch.data.sizes import FITS, MAX_MEGAPIXELS, Decoding, Size
from kdsearch.documents import mistake_in
from kdsearch.errors import DataError

VERSION = 2  # of the files of a store; 2: digests of the images
_PIXELS = 1  # of the decoded pixels, and so part of the key
_TICK_S = 0.02  # the clock of a local file system ticks in it: every 10 ms on older Linux
# Else Linux refuses to map more than there is memory. Python names it since 3.13.
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)
_blake = partial(blake2b, digest_size=16)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A source, decoded; the images are mapped from disk, copied only where they are written.

    images: those of all splits; ranges: which of them each split is. skipped: name -> reason of
    the unreadable. digests: int64 [N], equal for equal pixels. cut: the median share of a training
    image that was cut away.
    """

    folder: Path
    images: ImageSet
    ranges: Mapping[str, slice]
    skipped: Mapping[str, str]
    digests: Tensor
    cut: float

    @property
    def key(self) -> str:
        """Return the digest of what was decoded, and how."""
        return self.folder.name


@dataclass(frozen=True, slots=True, kw_only=True)
class _Meta:
    """Content of `meta.json`; crc32 is of whole files, by name."""

    version: int
    classes: tuple[str, ...]
    skipped: dict[str, str]
    channels: int
    size: int | Size
    cut: float
    counts: dict[str, int]
    crc32: dict[str, int]


_META = TypeAdapter(_Meta)


def open_store(source: Source, *, cache_dir: Path, decoding: Decoding) -> Stored:
    """Return the source's images, decoded at the first call.

    Without a side they have the canvas of the source; without one the images' own where all are
    equal squares of at most 64 pixels, else the median shorter side (of padded images the longer),
    at most 224, rounded down to a multiple of 32.
    Raises DataError when more than 1 % of a split cannot be read or the disk refuses.
    """
    if decoding.side is not None and decoding.side < 1:
        raise DataError(f"{source.name}: size {decoding.side} is not a number of pixels")
    folder = cache_dir / "data" / _key(source, decoding, cache_dir / "sources")
    if _damage(folder, source):
        with _locked(folder):
            damage = _damage(folder, source)  # another process may just have built it
            if damage and folder.exists():
                _log.warning("%s is damaged and is built again: %s", folder, damage)
            if damage:
                _build(folder, source, decoding)
    meta = _read_meta(folder)
    ends = list(accumulate(meta.counts.values(), initial=0))
    ranges = {name: slice(*pair) for name, pair in zip(meta.counts, pairwise(ends), strict=True)}
    images = ImageSet(_mapped(folder / IMAGES), _mapped(folder / LABELS))
    assert len(images) == len(images.images) == ends[-1]
    return Stored(
        folder=folder,
        images=images,
        ranges=ranges,
        skipped=meta.skipped,
        digests=torch.from_numpy(np.load(folder / DIGESTS)),
        cut=meta.cut,
    )


def _key(source: Source, decoding: Decoding, known: Path) -> str:
    """Return a digest of the names and bytes of the source, and of how they are decoded.

    known: the folder where keys are remembered, by the state of the files.
    """
    rest: tuple[object, ...] = () if source.canvas is None else (source.canvas,)
    rest += () if decoding.fit == FITS[0] else (decoding.fit,)
    limit = decoding.max_megapixels
    rest += () if limit == MAX_MEGAPIXELS else (f"at most {limit:g}",)
    how = repr((_PIXELS, decoding.side, source.channels, *rest)).encode()
    with _reading(source.name):
        state, is_settled = state_of([("", how), *source.content])
    key = recall(known / state)
    if key is not None:
        return key
    digest = _blake(how)
    for name, part in in_threads(_digest, source.content):
        digest.update(repr((name, part)).encode())
    if is_settled:
        remember(known / state, digest.hexdigest())
    return digest.hexdigest()


def _digest(part: tuple[str, Path | bytes]) -> tuple[str, str]:
    name, content = part
    if isinstance(content, bytes):
        return name, _blake(content).hexdigest()
    with _reading(content), content.open("rb") as file:
        return name, file_digest(file, _blake).hexdigest()


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
        if set(meta.counts) != set(source.splits) or set(meta.crc32) != set(FILES):
            return "meta.json does not list the splits and files"
        state, is_settled = _state(folder)
        if recall(folder / "checked") == state:
            return ""
        wrong = [name for name in meta.crc32 if _crc32(folder / name) != meta.crc32[name]]
        if is_settled and not wrong:
            remember(folder / "checked", state)
        return f"checksum of {' and '.join(wrong)}" if wrong else ""
    except (OSError, ValidationError) as error:
        return mistake_in(error)


def _state(folder: Path) -> tuple[str, bool]:
    return state_of((name, folder / name) for name in (*FILES, "meta.json"))


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


def _build(folder: Path, source: Source, decoding: Decoding) -> None:
    """Decode everything into `<folder>.tmp`, then put it in place; the caller holds the lock."""
    part = folder.with_name(folder.name + ".tmp")
    with writing(part):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
    try:
        with strict_pillow():
            shape = size_of(source, decoding)
            counts, skipped, cut = write_images(part, source, shape, decoding)
        with writing(part):
            meta = _Meta(
                version=VERSION,
                classes=source.classes,
                skipped=skipped,
                channels=source.channels,
                size=shape[0] if shape[0] == shape[1] else shape,
                cut=cut,
                counts=counts,
                crc32={name: _crc32(part / name) for name in FILES},
            )
            (part / "meta.json").write_text(json.dumps(asdict(meta), indent=1), encoding="utf-8")
            time.sleep(_TICK_S)  # from now on any change shows in the files' times
            remember(part / "checked", _state(part)[0])
            if folder.exists():
                shutil.rmtree(folder)
            part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time build a store; the others wait, then find it built."""
    with writing(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = folder.with_name(folder.name + ".lock").open("w")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
