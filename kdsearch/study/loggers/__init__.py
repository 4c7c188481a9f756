"""Loggers of a study by name, one file each; `base` has the events.

A logger that raises is dropped with a note; it never ends a study.
"""

from __future__ import annotations

from collections.abc import Sequence

from kdsearch.errors import SpecError
from kdsearch.registry import Registry
from kdsearch.study.loggers._callback import Calls, find_callback
from kdsearch.study.loggers.base import Callback, Callbacks, Logger
from kdsearch.study.study import OpenStudy

__all__ = ["Callback", "Callbacks", "Logger", "Loggers", "names"]

_REGISTRY: Registry[Logger] = Registry("kdsearch.study.loggers", Logger, what="logger")
names = _REGISTRY.names


class Loggers:
    """The loggers that a user asked for: found at once, opened with the study.

    Raises SpecError for an unknown name, a missing package, or a callback that is no function.
    """

    def __init__(self, wanted: Sequence[str] = (), *, callback: str | None = None) -> None:
        self._classes = {name: _find(name) for name in wanted}
        self._callbacks = {} if callback is None else {callback: find_callback(callback)}

    def open(self, study: OpenStudy) -> list[Logger]:
        """Return them for one study."""
        opened = {f"--log {name}": cls(study) for name, cls in self._classes.items()}
        calls = {f"--callback {path}": Calls(study, call) for path, call in self._callbacks.items()}
        for typed, logger in (opened | calls).items():
            logger.typed = typed
        return [*opened.values(), *calls.values()]


def _find(name: str) -> type[Logger]:
    try:
        return _REGISTRY.get(name)
    except ModuleNotFoundError as error:
        raise SpecError(
            f"--log {name}: there is no package {error.name!r} here; "
            f"`pip install 'kdsearch[{name}]'` brings it"
        ) from error
