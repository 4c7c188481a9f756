"""Loggers of a study by name, one file each; they import `study` and what stands before it.

`study/callbacks.py` has the events that they receive.
"""

from __future__ import annotations

from collections.abc import Sequence

from kdsearch.errors import SpecError
from kdsearch.extras import EXTRAS, install
from kdsearch.registry import Registry
from kdsearch.study.callbacks import Callback
from kdsearch.study.loggers._function import FunctionCallback, find_function
from kdsearch.study.loggers.base import Logger
from kdsearch.study.study import OpenStudy

__all__ = ["Logger", "Loggers", "names"]

_REGISTRY: Registry[Logger] = Registry("kdsearch.study.loggers", Logger, what="logger")
names = _REGISTRY.names


class Loggers:
    """The loggers that a user named: found at once, opened with the study.

    Raises SpecError for an unknown name, a missing package, or a callback that is no function.
    """

    def __init__(self, wanted: Sequence[str] = (), *, callback: str | None = None) -> None:
        self._classes = {name: _find(name) for name in wanted}
        self._functions = {} if callback is None else {callback: find_function(callback)}

    def open(self, study: OpenStudy) -> list[Callback]:
        """Return them for one study."""
        opened: dict[str, Callback] = {
            f"--log {name}": cls(study) for name, cls in self._classes.items()
        }
        for path, function in self._functions.items():
            opened[f"--callback {path}"] = FunctionCallback(study, function)
        for typed, callback in opened.items():
            callback.typed = typed
        return list(opened.values())


def _find(name: str) -> type[Logger]:
    try:
        return _REGISTRY.get(name)
    except ModuleNotFoundError as error:
        advice = f"`{install(name)}`" if name in EXTRAS else f"installing {error.name}"
        raise SpecError(
            f"--log {name}: there is no package {error.name!r} here; {advice} brings it"
        ) from error
