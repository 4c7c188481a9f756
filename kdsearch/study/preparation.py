"""preparing.json: a run before its search, for `kdsearch status`.

The run reads images, and loads or trains its teacher. The file goes when the search begins, or when
the run ends; one that is left is that of a killed run, and is ignored.
"""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdsearch import atomic
from kdsearch.errors import StudyError
from kdsearch.study.callbacks import Callback
from kdsearch.study.lease import Holder
from kdsearch.study.run_log import read_json

if TYPE_CHECKING:
    from kdsearch.tasks import Metric
    from kdsearch.training.trainer import Epoch

FILE = "preparing.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """The stage that a process is at, and the seconds since it began."""

    holder: Holder
    stage: str
    seconds: float


def read_stage(path: Path) -> Stage | None:
    """Return the stage of the run at `path`, None where none is being prepared."""
    found = read_json(path / FILE, Stage)
    return None if found is None or found.holder.is_dead() else found


class Preparation(Callback, AbstractContextManager["Preparation"]):
    """Passes events on, and writes the stage of a run from `begin` until the context ends.

    started: by `time.perf_counter`.
    """

    def __init__(self, callback: Callback, *, started: float) -> None:
        self._callback = callback
        self.started = started
        self._path: Path | None = None
        self._is_new = False

    def __exit__(self, *_: object) -> None:
        """Remove the file, and a folder that was made for it and holds nothing else."""
        self.end()
        if self._is_new and self._path is not None:
            with suppress(OSError):
                self._path.rmdir()

    def begin(self, path: Path) -> None:
        """Make the study's folder, and write the first stage."""
        if self._path is None:
            self._is_new = not path.exists()
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StudyError(f"cannot write to {path}: {error.strerror}") from error
            self._path = path
            self._write("reading the images")

    def end(self) -> None:
        """Remove the file."""
        if self._path is not None:
            (self._path / FILE).unlink(missing_ok=True)

    def on_message(self, text: str) -> None:
        """Pass it on."""
        self._callback.on_message(text)

    def on_prepare(self, metric: Metric) -> None:
        """Pass it on: the teacher is next."""
        self._write("loading or training the teacher")
        self._callback.on_prepare(metric)

    def on_teacher_epoch(self, epoch: Epoch, epochs: int) -> None:
        """Pass it on."""
        self._write(f"training the teacher, epoch {epoch.number} of {epochs}")
        self._callback.on_teacher_epoch(epoch, epochs)

    def _write(self, stage: str) -> None:
        if self._path is not None:
            seconds = time.perf_counter() - self.started
            content = asdict(Stage(holder=Holder.here(), stage=stage, seconds=seconds))
            atomic.write(self._path / FILE, json.dumps(content))
