"""Checkpoint of a training after an epoch, from which an interrupted or paused one resumes.

On a CPU it resumes bit for bit: the file holds weights, average, adapters, optimisers, both random
states and the counters of modules. It is written whole and read without running code from it. A
damaged file, or one of another training or of other code, is ignored.
"""

from __future__ import annotations

import copy
import io
import logging
import time
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch

from kdsearch import atomic
from kdsearch.errors import StudyError
from kdsearch.training.step import Step

_log = logging.getLogger(__name__)


class Checkpoint:
    """The file of one training, under its checksum.

    what: all that decides the training, in one line. alone: entered to restore it, which sets the
    process's random numbers.
    """

    every_seconds = 10.0

    def __init__(
        self, path: Path, what: str, *, alone: AbstractContextManager[object] | None = None
    ) -> None:
        self._path = path
        self._what = f"{what} | torch {torch.__version__}"
        self._alone = alone or nullcontext()
        self._last = time.perf_counter()

    def resume(self, step: Step) -> list[dict[str, Any]]:
        """Bring a step to where it was when the file was written; return the epochs until then."""
        try:
            digest, _, content = self._path.read_bytes().partition(b"\n")
            if digest != _digest(content):
                raise ValueError("its checksum is wrong")
            found = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            if found["what"] != self._what:
                raise ValueError(f"it is of {found['what']!r}")
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            _log.warning("%s is not used: %s", self._path, error)
            return []
        with self._alone:
            start = copy.deepcopy(step.state())
            try:
                step.restore(found["step"])
            except (RuntimeError, ValueError, KeyError) as error:  # of a file that has changed
                _log.warning("%s does not fit, the training starts anew: %s", self._path, error)
                step.restore(start)
                return []
        records: list[dict[str, Any]] = found["epochs"]
        return records

    def keep(self, step: Step, epochs: list[dict[str, Any]], *, at_once: bool = False) -> None:
        """Write the file, at once or where enough time has passed.

        Raises StudyError when the disk refuses.
        """
        if not at_once and time.perf_counter() - self._last < self.every_seconds:
            return
        content = io.BytesIO()
        torch.save({"what": self._what, "step": step.state(), "epochs": epochs}, content)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StudyError(f"cannot write {self._path}: {error.strerror}") from error
        atomic.write(self._path, _digest(content.getvalue()) + b"\n" + content.getvalue())
        self._last = time.perf_counter()

    def remove(self) -> None:
        """Remove the file of a training that ended."""
        self._path.unlink(missing_ok=True)


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).hexdigest().encode()
