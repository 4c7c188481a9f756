"""The exceptions a user can meet; a message says what, where, the value seen, what to type."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar

# A disk that is full, over its quota or not ours, or a file larger than is allowed.
NO_WRITE = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM)
)


class KDSearchError(Exception):
    """Base of every error raised for something the user can mend; the CLI ends with `exit_code`."""

    exit_code: ClassVar[int] = 2


class SpaceError(KDSearchError):
    """A search space cannot be read; the message lists every mistake with its line."""


class SpecError(KDSearchError):
    """A student, method, teacher, recipe or budget that does not exist or cannot be."""


class DataError(KDSearchError):
    """Images or labels cannot be read, or do not make a data set."""


class CostError(KDSearchError):
    """A model cannot be priced: an operator without a count, or a runtime that refuses it."""


class TrainingError(KDSearchError):
    """A training cannot go on: the loss is no longer finite."""


class StudyError(KDSearchError):
    """A study directory, its store or its request is not what it should be."""


class ExportError(KDSearchError):
    """An exported file does not load, or does not agree with the model it came from."""


class BudgetError(KDSearchError):
    """Nothing fits the budget; the message names the cheapest student seen and its cost."""

    exit_code = 3


class TrialsFailedError(KDSearchError):
    """Every trial failed, or three in a row alike; the message names the reasons and the log."""

    exit_code = 1


class StudyInterruptedError(KDSearchError):
    """The user stopped a study; the message says how to go on."""

    exit_code = 130


class StopStudy(Exception):  # noqa: N818 - like StopIteration, it is no error
    """Raised by a callback: no further trial begins, and the study ends with those it has."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ' (did you mean 'x'?)' for the nearest known name, or an empty string."""
    near = get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
