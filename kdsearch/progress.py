"""How far a running study is, for another shell to read: `progress.json`. No torch.

The driver replaces the file whole, at most once a second; a run that ends removes it. What is left
was left by a run that was killed.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from kdsearch.errors import StudyError
from kdsearch.request import write_text

PROGRESS = "progress.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A trial that has begun: the student and the method it tries, how far it is, since when.

    epoch: the last that ended, 0 while it is priced. began: seconds since 1970.
    """

    number: int
    what: str
    epochs: int
    epoch: int = 0
    val: float | None = None
    began: float = 0.0
    is_control: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A run and its process, as of `updated` (seconds since 1970).

    process: what tells this process from a later one of the same number, where that can be had.
    beside: how many trials have run at a time.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    host: str
    pid: int
    process: str
    began: str
    device: str
    updated: float
    seconds: float
    beside: int = 0
    running: tuple[Running, ...] = ()

    def is_here(self) -> bool:
        """Return whether it is a process of this machine."""
        return self.host == socket.gethostname()

    def is_alive(self) -> bool:
        """Return whether the process still runs; one of another machine is taken to run."""
        if not self.is_here():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return name_process(self.pid) == self.process


def name_process(pid: int) -> str:
    """Return what tells a process from a later one of the same number, '' where nothing does."""
    try:
        told = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    started = told.rpartition(")")[2].split()[19]  # field 22: ticks from the boot to its start
    return f"{pid}:{started}"


def read_progress(path: Path) -> Progress | None:
    """Return what the study at `path` says of its run; None where none is under way."""
    file = path / PROGRESS
    try:
        return TypeAdapter(Progress).validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise StudyError(f"{file} is damaged ({reason}); delete it") from error


def write_progress(path: Path, progress: Progress) -> None:
    """Replace the file."""
    write_text(path / PROGRESS, json.dumps(asdict(progress)))
