"""Exceptions for users; a message names what is wrong, where, the value, and the next step."""

from __future__ import annotations

import errno
import re
import sysconfig
import traceback
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar

# errno of a disk that is full, over quota or read-only, and of a file that is too large.
NO_WRITE = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS, errno.EPERM)
)
_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_NOT_THE_USERS = (
    str(Path(__file__).parent),
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
)


class KDSearchError(Exception):
    """Base of the errors that a user can fix; the command line exits with `exit_code`."""

    exit_code: ClassVar[int] = 2


class SpaceError(KDSearchError):
    """A search space is invalid; the message lists every mistake with its line."""


class SpecError(KDSearchError):
    """A setting is invalid: an unknown name, or a value outside its range."""


class DataError(KDSearchError):
    """Images or labels cannot be read."""


class CostError(KDSearchError):
    """FLOPs or latency of a model cannot be measured."""


class TrainingError(KDSearchError):
    """A training stopped, such as at a loss that is not finite."""


class StudyError(KDSearchError):
    """A study on disk cannot be opened, read or written."""


class ExportError(KDSearchError):
    """An exported file does not load, or disagrees with its model."""


class BudgetError(KDSearchError):
    """No student fits the budget; the message names the cheapest one and its cost."""

    exit_code = 3


class TrialsFailedError(KDSearchError):
    """All trials failed, or three in a row for one reason; the message names reasons and log."""

    exit_code = 1


class StudyInterruptedError(KDSearchError):
    """The user interrupted a study; the message holds the command that resumes it."""

    exit_code = 130


class StopStudy(Exception):  # noqa: N818 - like StopIteration, not an error
    """Raised by a callback to start no further trial and end the study.

    Example: raise StopStudy("accurate enough")
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'x'?)" with the nearest known name, or an empty string."""
    by_case = {each.casefold(): each for each in known}
    near = get_close_matches(name.casefold(), list(by_case), n=1)
    return f" (did you mean {by_case[near[0]]!r}?)" if near else ""


def printable(text: str, keep: str = "") -> str:
    """Return a text with its control characters escaped, so that a terminal obeys none.

    Marks that reverse the direction of a text, and bytes that are not UTF-8, are escaped as well.
    """
    return _CONTROL.sub(
        lambda found: found[0] if found[0] in keep else found[0].encode("unicode_escape").decode(),
        text,
    )


def place_in_user_file(error: BaseException) -> str:
    """Return "FILE.py, line 12", the user's own line that an error came from; '' without one."""
    lines = [
        (frame.filename, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if _is_users(frame.filename)
    ]
    if isinstance(error, SyntaxError) and _is_users(error.filename or ""):
        lines.append((str(error.filename), error.lineno))
    return "{}, line {}".format(*lines[-1]) if lines else ""


def _is_users(file: str) -> bool:
    is_known = any(Path(file).is_relative_to(folder) for folder in _NOT_THE_USERS)
    return file.endswith(".py") and not is_known


def explained(error: BaseException) -> str:
    """Return the type, the first line and the user's own line of an error, as one line."""
    first = (str(error).strip() or "no message").splitlines()[0]
    place = place_in_user_file(error)
    return f"{type(error).__name__}: {first}" + (f" ({place})" if place else "")
