"""Time callables against each other: alternately, in blocks, the order turned round each time.

What else the machine does falls on all of them alike, so ratios hold where times do not. Judged by
the CPU clock of the calling thread, which on one thread computes everything; the wall clock is
kept beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_BLOCKS = 30
_WARM_UP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """The median over blocks of what was measured, one time over another say, and the quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Seconds a call, [blocks, callables], by the CPU clock of the thread and by the wall clock."""

    cpu: np.ndarray
    wall: np.ndarray

    def ratio(self, one: int, other: int, *, clock: str = "cpu") -> Ratio:
        """Return the time of one callable over another's, by their places."""
        seconds = self.cpu if clock == "cpu" else self.wall
        return quartiles(seconds[:, one] / seconds[:, other])

    def ms(self, place: int) -> float:
        """Return a callable's median milliseconds a call by the CPU clock."""
        return _told(1e3 * np.median(self.cpu[:, place]))


def quartiles(values: np.ndarray) -> Ratio:
    """Return the median and the quartiles of what the blocks gave."""
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    return Ratio(median=_told(median), low=_told(low), high=_told(high))


def alternate(
    callables: Sequence[Callable[[], object]],
    *,
    seconds: float,
    blocks: int = _BLOCKS,
    warm_up: int = _WARM_UP,
) -> Times:
    """Time all callables for about `seconds` together, in blocks of equally many calls each.

    Each is called 2 * `warm_up` times before, and at least once a block.
    """
    for call in callables:
        _clocked(call, warm_up)
    once = sum(_clocked(call, warm_up)[1] for call in callables)
    calls = max(1, round(seconds / blocks / once))
    cpu, wall = np.empty((2, blocks, len(callables)))
    for block in range(blocks):
        order = range(len(callables))
        for place in reversed(order) if block % 2 else order:
            cpu[block, place], wall[block, place] = _clocked(callables[place], calls)
    return Times(cpu=cpu, wall=wall)


def _told(value: float) -> float:
    """Return four decimals; the fifth is noise."""
    return round(float(value), 4)


def _clocked(call: Callable[[], object], times: int) -> tuple[float, float]:
    """Return CPU and wall seconds a call."""
    wall, cpu = time.perf_counter(), time.thread_time()
    for _ in range(times):
        call()
    return (time.thread_time() - cpu) / times, (time.perf_counter() - wall) / times
