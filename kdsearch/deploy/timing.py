"""State how long a run takes, with an interval that the next process will lie in.

A process that times one network sees one layout of memory and one stretch of time, so the scatter
within it says little of the next one. A *round* is what one fresh process says; a latency is the
median of some rounds, and its interval predicts one more. Each round is a ratio to a reference
network that ran in turns with the candidate, times what the reference takes when it is undisturbed.

A machine has slower moments, for its neighbours or its clock: on one idle virtual machine all that
ran took 11 % more for two thirds of the time, in turns of .04 to 2.3 s. A ratio does not see them,
but whoever times the file by a plain clock does; so they belong to the interval's upper end.
Knows no runtime; never imports torch.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from kdsearch.errors import CostError

NARROW = 0.03  # half the width of an interval that is called narrow, as a fraction of the latency
# The least that half an interval may be: a student timed again minutes later, under another load,
# was found up to 2 % off where its own rounds had agreed to 1 %.
FLOOR = 0.02
BUSY = 1.1  # wall over CPU time from which a latency says that it was disturbed
_FEWEST = 3  # rounds that an interval is told from
_BLOCKS = 8
_BLOCK_SECONDS = 0.006
_BLOCK_RUNS = 3  # at least; what ran in between has emptied caches, so one more comes first
_STABLE = 0.05
# Student's t at 97.5 % for 2, 3, ... degrees of freedom.
_T = (4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179)

Run = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Milliseconds a run, as the median of rounds in fresh processes.

    low_ms, high_ms: where one more process will find it, 95 times of 100. spread_ms: interquartile
    range of the rounds. contention: wall time over the process's CPU time, about 1 when its thread
    had a core to itself; None where the device does not tell. pace: how many times longer a run
    takes in the machine's slower moments, which high_ms holds. is_cut: whether it was asked no
    further as all of the interval was over a limit.
    """

    ms: float
    low_ms: float
    high_ms: float
    spread_ms: float
    contention: float | None
    pace: float = 1.0
    is_cut: bool = False

    def __post_init__(self) -> None:
        numbers = (self.ms, self.spread_ms, self.high_ms, self.contention or 1.0)
        if not (
            all(map(math.isfinite, numbers))
            and 0 < self.low_ms <= self.ms <= self.high_ms
            and self.spread_ms >= 0
            and (self.contention is None or self.contention > 0)
            and self.pace >= 1
        ):
            raise CostError(f"{self} is not a latency")

    @property
    def is_narrow(self) -> bool:
        """Whether the interval of undisturbed runs is as narrow as measuring tries to make it."""
        return self.high_ms / self.pace - self.low_ms <= 2 * NARROW * self.ms * (1 + 1e-9)

    def __str__(self) -> str:
        """Return the latency with its interval, and what is wrong with it."""
        text = f"{self.ms:.4g} ms, 95 % of processes {self.low_ms:.4g} to {self.high_ms:.4g}"
        if not self.is_narrow:
            text += f"; not within {100 * NARROW:g} %"
        busy = self.contention is not None and self.contention > BUSY
        return text + ("; the machine was busy" if busy else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What one process found: milliseconds a run; contention and pace as of `Latency`."""

    ms: float
    contention: float | None = None
    pace: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundLimits:
    """Rounds of one latency: `min_rounds`, then more until it is narrow, up to either limit."""

    min_rounds: int = 4
    max_rounds: int = 12
    max_seconds: float = 8.0

    def __post_init__(self) -> None:
        assert _FEWEST <= self.min_rounds <= self.max_rounds <= len(_T) + 1


def measure_rounds(
    measure: Callable[[], Round], limits: RoundLimits, limit_ms: float = math.inf
) -> Latency:
    """Return the latency of rounds, measured until its interval is narrow or a limit is reached.

    Stops early, with `is_cut`, once the whole interval exceeds `limit_ms`.
    """
    rounds: list[Round] = []
    end = time.monotonic() + limits.max_seconds
    while True:
        rounds.append(measure())
        if len(rounds) < _FEWEST:
            continue
        found = latency_of_rounds(rounds)
        if len(rounds) >= limits.min_rounds and (
            found.is_narrow or len(rounds) == limits.max_rounds or time.monotonic() > end
        ):
            return found
        if found.low_ms > limit_ms:
            return replace(found, is_cut=True)


def latency_of_rounds(rounds: list[Round]) -> Latency:
    """Return the median of at least 3 rounds and Student's interval for one more, of their logs."""
    logs = np.log([found.ms for found in rounds])
    count = len(logs)
    half = _T[count - 3] * float(logs.std(ddof=1)) * math.sqrt(1 + 1 / count)
    half = max(half, math.log1p(FLOOR))
    low, middle, high = np.exp(np.quantile(logs, (0.25, 0.5, 0.75)))
    told = [found.contention for found in rounds if found.contention is not None]
    pace = float(np.median([found.pace for found in rounds]))
    return Latency(
        ms=float(middle),
        low_ms=float(middle) * math.exp(-half),
        high_ms=float(middle) * math.exp(half) * pace,
        spread_ms=float(high - low),
        contention=float(np.median(told)) if told else None,
        pace=pace,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Some runs after one another: the lower quartile of their seconds, and wall over CPU time."""

    seconds: float
    contention: float


def time_block(run: Run, clock: Clock, *, seconds: float = _BLOCK_SECONDS) -> Timed:
    """Time runs for about `seconds`, at least _BLOCK_RUNS, after one that is not timed.

    The lower quartile, since whatever disturbs a run makes it longer: on an idle core it is the
    median to 0.5 %.
    """
    run()
    times: list[float] = []
    wall, cpu = time.perf_counter(), time.process_time()
    end = wall + seconds
    while len(times) < _BLOCK_RUNS or time.perf_counter() < end:
        started = clock()
        run()
        times.append(clock() - started)
    spent = max(time.process_time() - cpu, 1e-9)
    return Timed(
        seconds=float(np.quantile(times, 0.25)),
        contention=(time.perf_counter() - wall) / spent,
    )


def warm_up(run: Run, clock: Clock, *, at_most: int = 10) -> float:
    """Run until two blocks agree, and return the seconds of a run then."""
    before = time_block(run, clock).seconds
    for _ in range(at_most):
        now = time_block(run, clock).seconds
        if abs(now - before) <= _STABLE * before:
            return now
        before = now
    return before


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """A candidate and a reference in turns: the median ratio over pairs of blocks.

    contention: wall over CPU time.
    """

    ratio: float
    contention: float


def time_pairs(run: Run, reference: Run, clock: Clock) -> Pairs:
    """Time a candidate and a reference, both warm, in blocks that take turns."""
    blocks = [(time_block(run, clock), time_block(reference, clock)) for _ in range(_BLOCKS)]
    return Pairs(
        ratio=float(np.median([ours.seconds / theirs.seconds for ours, theirs in blocks])),
        contention=float(np.median([ours.contention for ours, _ in blocks])),
    )


def clock_of(threads: int) -> Clock:
    """Return the process's CPU clock for one thread; the wall clock for several.

    On an idle core both tell the same (0.508 and 0.507 ms); several threads wait for one another.
    Of the process, which does nothing else: a runtime may compute in a thread of its own.
    """
    return time.process_time if threads == 1 else time.perf_counter


def pin(threads: int) -> None:
    """Hold this thread, and those that it starts, to as many cores; the last ones it may use.

    The first cores are where interrupts and other pinned programs are. Where the system has no
    such call, nothing is held.
    """
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, set(allowed[-threads:]))
