"""How far a running study is, for another shell to read: `progress.json`. No torch.

The driver replaces the file whole, at most once a second; a run that ends removes it. What is left
was left by a run that was killed.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from kdsearch import atomic
from kdsearch.errors import StudyError
from kdsearch.study.lease import Holder

PROGRESS = "progress.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A trial that has begun: the student and the method it tries, how far it is, since when.

    epoch: the last that ended, 0 while it is priced. began: seconds since 1970.
    kind: see `kind_of`.
    """

    number: int
    what: str
    epochs: int
    epoch: int = 0
    val: float | None = None
    began: float = 0.0
    kind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A run and its process, as of `updated` (seconds since 1970).

    beside: how many trials have run at a time.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    holder: Holder
    began: str
    device: str
    updated: float
    seconds: float
    beside: int = 0
    running: tuple[Running, ...] = ()


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
    atomic.write(path / PROGRESS, json.dumps(asdict(progress)))
