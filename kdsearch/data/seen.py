"""Remember what was worked out from files for as long as they stay as they are.

What the file system says of a file stands for its bytes, as in git's index. A fact is a file of
text under its checksum; one that is missing, damaged or could not be kept is worked out again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from kdsearch.atomic import replacing

# A file that changes again within one tick of its file system's clock looks the same. FAT's takes
# two seconds, the longest of those in use; ext4's takes 10 ms at most.
TICK_NS = 2_000_000_000
_log = logging.getLogger(__name__)


def state_of(parts: Iterable[tuple[str, Path | bytes]]) -> tuple[str, bool]:
    """Return a digest that stands for named contents, and whether any later change will show.

    To be asked before the files are read: only what is old enough then may be remembered.
    Raises OSError.
    """
    digest = blake2b(digest_size=16)
    newest = 0
    for name, content in parts:
        if isinstance(content, bytes):
            told: object = blake2b(content, digest_size=16).digest()
        else:
            found = content.stat()
            places = (found.st_dev, found.st_ino, found.st_size)
            told = (*places, found.st_mtime_ns, found.st_ctime_ns)
            newest = max(newest, found.st_ctime_ns)  # the one time that no program can set
        digest.update(repr((name, told)).encode())
    return digest.hexdigest(), newest + TICK_NS < time.time_ns()


def recall(path: Path) -> str | None:
    """Return the fact that was remembered at `path`, if it is there and whole."""
    with suppress(OSError, UnicodeDecodeError):
        checksum, _, fact = path.read_text(encoding="utf-8").partition("\n")
        if checksum == _checksum(fact):
            return fact
    return None


def remember(path: Path, fact: str) -> None:
    """Keep a fact; where the disk refuses, the next process does without."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(f"{_checksum(fact)}\n{fact}", encoding="utf-8")
    except OSError as error:
        _log.info("%s cannot be written, so that files are read again: %s", path, error)


def _checksum(fact: str) -> str:
    return blake2b(fact.encode(), digest_size=8).hexdigest()
