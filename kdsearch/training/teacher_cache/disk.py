"""Views on disk: `<cache>/teacher/KEY/AUGMENT/0001-answers.safetensors`, mapped into memory.

A file appears whole, and one process at a time makes a view. It holds its key and a checksum; a
file that is damaged or has another key is logged, ignored and rewritten.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdsearch.atomic import replacing
from kdsearch.digests import digest_of
from kdsearch.training.teacher_cache.parts import GROUPS, LARGE, Parts, View

MAX_DISK_BYTES = 8 * 1024**3
_FREE_SHARE = 4  # the cache takes at most a quarter of the free space
_HEADER_BYTES = 4096  # of a file, at most
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """The folder of cached views, and the key of their images.

    max_bytes: of all teachers' views together; never more than a quarter of the free disk space.
    """

    cache_dir: Path
    data_key: str
    max_bytes: int = MAX_DISK_BYTES


class ViewFiles:
    """The files of one teacher on one set of images.

    Files that were not opened since this object was made are deleted for new ones, the least
    recently used first. Large parts use at most half of the budget.
    """

    def __init__(self, disk: Disk, key: str) -> None:
        self._root = disk.cache_dir / "teacher"
        self._key = key
        self._max_bytes = disk.max_bytes
        self._since = time.time() - 1  # the times of files are coarser than the clock

    def load(self, view: View, group: str, *, is_valid: Callable[[Parts], bool]) -> Parts | None:
        """Return a group's parts, memory-mapped, or None without a valid file.

        is_valid: compares the parts with the teacher's live outputs.
        """
        path = self._path(view, group)
        try:
            parts = _read(path, self._what(view, group), GROUPS[group])
            if not is_valid(parts):
                raise ValueError("the teacher's outputs differ")
            os.utime(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            _log.warning("%s is ignored and rewritten: %s", path, error)
            return None
        return parts

    @contextmanager
    def making(self, view: View) -> Iterator[None]:
        """Lock a view, so that one process makes it while others wait.

        The kernel frees the lock when its holder dies. The empty file stays, as waiting processes
        have it open; its name has no dot, so that the cache does not count it.
        """
        path = self._path(view, "lock").with_suffix("")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def save(self, view: View, group: str, parts: Parts) -> None:
        """Write a group's parts. Raises OSError or SafetensorError when the disk refuses."""
        path = self._path(view, group)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"{name}.{i}": tensor.cpu().contiguous()
            for name, found in parts.items()
            for i, tensor in enumerate(found)
        }
        about = {"what": self._what(view, group), "crc32": str(_crc32(tensors))}
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata=about)

    def make_room(self, size: int, parts: frozenset[str]) -> bool:
        """Delete unused files for `size` bytes; return True if these parts may be written."""
        found = {}
        for path in self._root.rglob("*.*"):
            with suppress(FileNotFoundError):  # another process may have dropped or renamed it
                found[path] = path.stat()
        used = sum(stat.st_size for stat in found.values())
        limit = min(self._max_bytes, (self._free_bytes() + used) // _FREE_SHARE)
        limit = (limit // 2 if parts & LARGE else limit) - size - _HEADER_BYTES * len(GROUPS)
        unused = [path for path, stat in found.items() if stat.st_mtime < self._since]
        if used - sum(found[path].st_size for path in unused) > limit:
            return False
        for path in sorted(unused, key=lambda path: found[path].st_mtime):
            if used <= limit:
                break
            path.unlink(missing_ok=True)
            used -= found[path].st_size
        return True

    def _free_bytes(self) -> int:
        folder = next(path for path in (self._root, *self._root.parents) if path.is_dir())
        return shutil.disk_usage(folder).free

    def _path(self, view: View, group: str) -> Path:
        augment = view.augment
        folder = f"{augment.policy}-{augment.mix}-{digest_of(asdict(augment))[:8]}"
        return self._root / self._key / folder / f"{view.number:04d}-{group}.safetensors"

    def _what(self, view: View, group: str) -> str:
        return f"{self._key} | {view} | {group}"


def _read(path: Path, what: str, names: frozenset[str]) -> Parts:
    """Map a file's tensors. Raises ValueError for another key or a wrong checksum."""
    if not path.is_file():
        raise FileNotFoundError(path)
    with safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if about.get("what") != what:
        raise ValueError(f"its key is {about.get('what')!r}")
    if about.get("crc32") != str(_crc32(tensors)):
        raise ValueError("its checksum is wrong")
    counts = Counter(key.partition(".")[0] for key in tensors)
    return {name: tuple(tensors[f"{name}.{i}"] for i in range(counts[name])) for name in names}


def _crc32(tensors: dict[str, Tensor]) -> int:
    """Return a checksum of names, shapes, types and values."""
    value = 0
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode(), value)
        if tensor.numel():
            value = zlib.crc32(tensor.flatten().view(torch.uint8).numpy().data, value)
    return value
