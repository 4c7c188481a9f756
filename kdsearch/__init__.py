"""AutoML for knowledge distillation in computer vision, under a budget that holds."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from kdsearch.errors import StopStudy

if TYPE_CHECKING:
    from kdsearch.workflows.search import search

__all__ = ["StopStudy", "__version__", "search"]
__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    """Import what is asked for: Optuna takes half a second."""
    if name == "search":
        from kdsearch.workflows.search import search

        return search
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
