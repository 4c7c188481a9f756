"""Logs of other processes: they send records to the driver, which alone writes the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeAlias

_Send: TypeAlias = Callable[[logging.LogRecord], None]


def send_logs(send: _Send) -> None:
    """Send what kdsearch logs in this process from now on."""
    logger = logging.getLogger("kdsearch")
    logger.setLevel(logging.INFO)
    logger.addHandler(_Sender(send))


def write_log(record: logging.LogRecord) -> None:
    """Log a record that another process sent."""
    logging.getLogger(record.name).handle(record)


class _Sender(logging.Handler):
    """Sends each record as text with its traceback, which can always be pickled."""

    def __init__(self, send: _Send) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        where = record.pathname, record.lineno
        self._send(logging.LogRecord(record.name, record.levelno, *where, text, None, None))
