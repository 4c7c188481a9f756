"""Turn a student into files that run without torch, each verified against its model.

Importing this package is cheap: torch is loaded when one of its names is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdsearch.export.onnx import Agreement, accuracy, for_pricing, to_onnx, verify

__all__ = ["Agreement", "accuracy", "for_pricing", "to_onnx", "verify"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("kdsearch.export.onnx"), name)
