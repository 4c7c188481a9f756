"""Cache of facts derived from files, valid until the files change.

The file system's record of a file (size, times, inode) identifies its bytes, as in git's index. A
fact is a text file with a checksum; a missing or damaged one is derived again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from kdsearch.atomic import replacing

# A file that changes twice within one tick of its file system's clock looks unchanged. A tick lasts
# two seconds on FAT, the longest in use, and 10 ms at most on ext4.
TICK_NS = 2_000_000_000
_log = logging.getLogger(__name__)


def state_of(parts: Iterable[tuple[str, Path | bytes]]) -> tuple[str, bool]:
    """Return a digest of named contents, and True if any later change would alter it.

    Call it before reading the files: a fact about files newer than a tick must not be cached.
    Raises OSError.
    """
    digest = blake2b(digest_size=16)
    newest = 0
    for name, content in parts:
        if isinstance(content, bytes):
            identity: object = blake2b(content, digest_size=16).digest()
        else:
            found = content.stat()
            places = (found.st_dev, found.st_ino, found.st_size)
            identity = (*places, found.st_mtime_ns, found.st_ctime_ns)
            newest = max(newest, found.st_ctime_ns)  # the one time that no program can set
        digest.update(repr((name, identity)).encode())
    return digest.hexdigest(), newest + TICK_NS < time.time_ns()


def recall(path: Path) -> str | None:
    """Return the fact stored at `path`, None if it is missing or damaged."""
    with suppress(OSError, UnicodeDecodeError):
        checksum, _, fact = path.read_text(encoding="utf-8").partition("\n")
        if checksum == _checksum(fact):
            return fact
    return None


def remember(path: Path, fact: str) -> None:
    """Store a fact; if the disk refuses, log it, and the next process derives the fact again."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(f"{_checksum(fact)}\n{fact}", encoding="utf-8")
    except OSError as error:
        _log.info("%s cannot be written, so that files are read again: %s", path, error)


def _checksum(fact: str) -> str:
    return blake2b(fact.encode(), digest_size=8).hexdigest()
