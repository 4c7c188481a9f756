"""A line before each download, which a console shows. A library's user reads it in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_log = logging.getLogger(__name__)


def announce(what: str) -> None:
    """Log the line that comes before a download of `what`."""
    _log.info("Downloading %s", what)


@contextmanager
def announced(show: Callable[[str], None]) -> Iterator[None]:
    """Show the lines of downloads in this block."""
    handler = _Lines(show)
    level = _log.level
    _log.addHandler(handler)
    _log.setLevel(logging.INFO)
    try:
        yield
    finally:
        _log.removeHandler(handler)
        _log.setLevel(level)


class _Lines(logging.Handler):
    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__()
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        self._show(record.getMessage())
