"""Tasks: network, targets, loss and metric of a kind of labels.

A task is one file; the data name theirs (`ImageData.task`), and a user's own is called
`FILE.py:Class` or `package.module:Class`. Imports `models`, `data` and the modules above them.
`base` and this module load no torch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from kdsearch.registry import Registry
from kdsearch.tasks.base import ACCURACY, ClassScores, Details, Facts, Meter, Metric, Task

if TYPE_CHECKING:
    from kdsearch.data.base import Colour, ImageData

__all__ = [
    "ACCURACY",
    "TASKS",
    "ClassScores",
    "Details",
    "Facts",
    "Meter",
    "Metric",
    "Task",
    "get",
    "names",
    "of",
]

TASKS: Registry[Task] = Registry("kdsearch.tasks", "kdsearch.tasks.base:Task", what="task")


def get(name: str) -> type[Task]:
    """Return the class of a task, by name or dotted path. Raises SpecError."""
    return TASKS.get(name)


def names() -> tuple[str, ...]:
    """Return the names of the built-in tasks in alphabetical order."""
    return TASKS.names()


def of(data: ImageData) -> Task:
    """Return the task of a data set, made for its classes. Raises SpecError or DataError."""
    return _made(data.task, data.classes, data.metric, data.colours)


@lru_cache(maxsize=8)
def _made(name: str, classes: tuple[str, ...], metric: str, colours: tuple[Colour, ...]) -> Task:
    task = get(name)(classes, metric)
    task.colours = colours
    return task
