"""Schedules: a factor on a weight or a temperature over the progress of a training in [0, 1].

Progress is a fraction of the training's length, so a short training runs the whole schedule too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kdsearch.errors import SpecError, did_you_mean

SCHEDULES = ("constant", "linear", "cosine", "decay")
_NUMBER = r"(\d+(?:\.\d*)?)"
_TEXT = re.compile(rf"([a-z]+)(?::{_NUMBER}->{_NUMBER})?(?:@{_NUMBER}-{_NUMBER})?")


@dataclass(frozen=True, slots=True)
class Schedule:
    """A factor that moves from `start` to `end` while progress moves from `since` to `until`."""

    kind: str
    start: float
    end: float
    since: float = 0.0
    until: float = 1.0

    def __call__(self, progress: float) -> float:
        """Return the factor at a progress in [0, 1]: `start` before `since`, `end` from `until`."""
        if progress < self.since:
            return self.start
        if progress >= self.until:
            return self.end
        share = (progress - self.since) / (self.until - self.since)
        return _SHAPES[self.kind](self.start, self.end, share)


def parse_schedule(name: str, text: str) -> Schedule:
    """Read `KIND`, `KIND:START->END` or either with `@SINCE-UNTIL`. Raises SpecError.

    `constant` is 1 throughout. `linear` and half a `cosine` fall from 1 to 0, `decay`
    exponentially from 1 to 0.1, unless START and END say otherwise: `linear:0->1@0-0.1` warms up
    over the first tenth.
    """
    match = _TEXT.fullmatch(text)
    if match is None or match[1] not in SCHEDULES:
        raise SpecError(
            f"{name}: {text!r}{did_you_mean(text, SCHEDULES)} is not one of "
            f"{', '.join(SCHEDULES)}, nor such as 'linear:0->1' or 'cosine:1->0.1@0.5-1'"
        )
    kind, *numbers = match.groups()
    default = {"constant": (1.0, 1.0), "decay": (1.0, 0.1)}.get(kind, (1.0, 0.0))
    start, end = default if numbers[0] is None else map(float, numbers[:2])
    since, until = (0.0, 1.0) if numbers[2] is None else map(float, numbers[2:])
    if not 0 <= since < until <= 1:
        raise SpecError(f"{name}: {text!r}: the part @{since:g}-{until:g} must rise within 0 to 1")
    if kind == "constant" and (start, end) != (1, 1):
        raise SpecError(f"{name}: {text!r}: a constant is 1; change the weight itself")
    if kind == "decay" and not (start > 0 and end > 0):
        raise SpecError(f"{name}: {text!r}: an exponential decay never reaches 0; write 1->0.01")
    return Schedule(kind, start, end, since, until)


def _linear(start: float, end: float, share: float) -> float:
    return start + (end - start) * share


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def _decay(start: float, end: float, share: float) -> float:
    return float(start * (end / start) ** share)


_SHAPES: Mapping[str, Callable[[float, float, float], float]] = {
    "constant": _linear,
    "linear": _linear,
    "cosine": _cosine,
    "decay": _decay,
}
