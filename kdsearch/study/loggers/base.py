"""A logger: a callback that writes one study to a file or a service."""

from __future__ import annotations

from kdsearch.study.callbacks import Callback
from kdsearch.study.study import OpenStudy


class Logger(Callback):
    """A callback that `--log` opens for one study."""

    def __init__(self, study: OpenStudy) -> None:
        """Begin with an open study, which it only reads."""
