"""A training on disk after an epoch, so that one which was interrupted goes on from there.

It goes on bit for bit on a CPU: weights, average, adapters, optimisers, both random states and what
modules count on the host are in the file. It is written beside and renamed, and read without
running code from it; one that is damaged, or of anything else, is as good as none.
"""

from __future__ import annotations

import logging
import os
import pickle
import time
from pathlib import Path
from typing import Any

import torch

from kdsearch.errors import StudyError
from kdsearch.step import Step

_DAMAGED = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError)
_log = logging.getLogger(__name__)


class Checkpoint:
    """The file of one training. what: all that decides the training, in one line."""

    every_seconds = 10.0

    def __init__(self, path: Path, what: str) -> None:
        self._path = path
        self._what = f"{what} | torch {torch.__version__}"
        self._last = time.perf_counter()

    def resume(self, step: Step) -> list[dict[str, Any]]:
        """Bring a step to where it was when the file was written; return the epochs until then."""
        try:
            found = torch.load(self._path, map_location="cpu", weights_only=True)
            if found["what"] != self._what:
                raise ValueError(f"it is of {found['what']!r}")
        except FileNotFoundError:
            return []
        except _DAMAGED as error:
            _log.warning("%s is not used: %s", self._path, str(error).partition("\n")[0])
            return []
        step.restore(found["step"])
        records: list[dict[str, Any]] = found["epochs"]
        return records

    def keep(self, step: Step, epochs: list[dict[str, Any]]) -> None:
        """Write the file, where enough time has passed. Raises StudyError when the disk refuses."""
        if time.perf_counter() - self._last < self.every_seconds:
            return
        partial = self._path.with_suffix(f".{os.getpid()}.part")
        content = {"what": self._what, "step": step.state(), "epochs": epochs}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(content, partial)
            partial.replace(self._path)
        except (OSError, RuntimeError) as error:
            raise StudyError(f"cannot write {self._path}: {error}") from error
        self._last = time.perf_counter()

    def remove(self) -> None:
        """Remove the file of a training that ended."""
        self._path.unlink(missing_ok=True)
