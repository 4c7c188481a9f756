"""`--callback`: a user's function, called after each trial as Optuna's callbacks are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, cast

from kdsearch.errors import SpecError
from kdsearch.registry import import_object
from kdsearch.spec import TrialRecord
from kdsearch.study.callbacks import Callback
from kdsearch.study.study import OpenStudy

TrialFunction: TypeAlias = Callable[[OpenStudy, TrialRecord], object]


def find_function(path: str) -> TrialFunction:
    """Return the function at `module:function` or `path/to/file.py:function`.

    Raises SpecError where there is none.
    """
    found = import_object(path, what="--callback")
    if not callable(found):
        kind = type(found).__name__
        raise SpecError(f"--callback {path!r}: expected a function (study, record), found a {kind}")
    return cast("TrialFunction", found)


class FunctionCallback(Callback):
    """Calls `function(study, record)` in the driver's thread; it may raise StopStudy."""

    def __init__(self, study: OpenStudy, function: TrialFunction) -> None:
        self._study = study
        self._function = function

    def on_trial_end(self, record: TrialRecord, best: TrialRecord | None) -> None:
        """Call it."""
        self._function(self._study, record)
