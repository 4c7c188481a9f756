"""A user's function, called after each trial as Optuna's callbacks are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

from kdsearch.errors import SpecError
from kdsearch.registry import import_object
from kdsearch.spec import TrialRecord
from kdsearch.study.loggers.base import Logger
from kdsearch.study.study import OpenStudy

Callback: TypeAlias = Callable[[OpenStudy, TrialRecord], object]


def find_callback(path: str) -> Callback:
    """Return the function at `module:function` or `path/to/file.py:function`.

    Raises SpecError where there is none.
    """
    found = import_object(path, what="--callback")
    if not callable(found):
        kind = type(found).__name__
        raise SpecError(f"--callback {path!r}: expected a function (study, record), found a {kind}")
    return cast("Callback", found)


class Calls(Logger):
    """Calls `callback(study, record)` in the driver's thread; it may raise StopStudy."""

    def __init__(self, study: OpenStudy, callback: Callback) -> None:
        self._study = study
        self._callback = callback

    def trial(self, record: TrialRecord, best: TrialRecord | None) -> None:
        """Call it."""
        self._callback(self._study, record)
