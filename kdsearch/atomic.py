"""Write a file whole or not at all: to a temporary name in its folder, then renamed."""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kdsearch.errors import StudyError

_TEMPORARY = re.compile(r"\..+\.(\d+)-\d+\.tmp")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path; it becomes `path` when the block ends, or is deleted if it raises.

    Its mode is that of any new file, whatever wrote it. The folder must exist. Raises OSError when
    the file cannot be made or renamed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")
    try:
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def write(path: Path, content: str | bytes) -> None:
    """Replace a file with text (UTF-8) or bytes. Raises StudyError when the disk refuses."""
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise StudyError(f"cannot write {path}: {error.strerror or error}") from error


def remove_left_behind(folder: Path) -> None:
    """Remove the temporary files below a folder that killed processes left."""
    for file in folder.rglob(".*.tmp"):
        found = _TEMPORARY.fullmatch(file.name)
        if found and not Path("/proc", found[1]).exists() and Path("/proc/self").exists():
            with suppress(OSError):
                file.unlink()
