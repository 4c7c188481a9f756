"""Distillation losses, one file a paper; the file name is the method's name.

Listing the names imports no torch; a method's module is imported when its class is looked up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.registry import Registry

if TYPE_CHECKING:
    from kdsearch.methods.base import DistillLoss

METHODS: Registry[DistillLoss] = Registry(
    "kdsearch.methods",
    "kdsearch.methods.base:DistillLoss",
    what="method",
    aliases={"attention_transfer": "at"},
)


def get(name: str) -> type[DistillLoss]:
    """Return the class of a method, by name, alias or dotted path. Raises SpecError."""
    return METHODS.get(name)


def names(task: str = "") -> tuple[str, ...]:
    """Return the names of the built-in methods in alphabetical order.

    Of a task: without those for other tasks alone; their modules are imported.
    """
    found = METHODS.names()
    return tuple(n for n in found if not get(n).tasks or task in get(n).tasks) if task else found
