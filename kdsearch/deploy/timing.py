"""Measure the time of a run, with an interval that predicts the next process.

One process sees one memory layout and one stretch of time, so its own scatter does not predict the
next process. A *round* is the result of one fresh process; a latency is the median of several
rounds, and its interval predicts one more. A round is the ratio to a reference network, timed in
alternating blocks with the candidate, times the undisturbed time of the reference.

A machine has slow phases, due to its neighbours or its clock: on an idle virtual machine every run
took 11 % longer for two thirds of the time, in phases of 0.04 to 2.3 s. A ratio cancels them, a
user's clock does not, so the interval's upper end includes them.
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

NARROW = 0.03  # an interval is narrow up to this half-width, as a fraction of the latency
# The least half-width: minutes later, under another load, a student took up to 2 % more or less
# although its own rounds had agreed to 1 %.
FLOOR = 0.02
# The interval of a single round, as a factor. Rounds of five files, 24 each, on a machine with
# three processes a core: the logs' standard deviation was 0.02 to 0.05, the extreme 16 % off.
ONE_ROUND = 1.25
BUSY = 1.1  # wall over CPU time above which the machine counts as busy
_FEWEST = 3  # rounds of an interval
_BLOCKS = 8
_BLOCK_SECONDS = 0.006
_BLOCK_RUNS = 3  # at least, after one untimed run: the other network has emptied the caches
_STABLE = 0.05
# Student's t at 97.5 % for 2, 3, ... degrees of freedom.
_T = (4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179)

Run = Callable[[], object]
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Milliseconds a run: the median of rounds in fresh processes.

    low_ms, high_ms: 95 % prediction interval for one more process. spread_ms: interquartile range
    of the rounds. contention: wall time over CPU time of the process, about 1 with a core of its
    own; None where unknown. pace: slowdown in the machine's slow phases, a factor included in
    high_ms. is_cut: measuring stopped early, since the whole interval was on one side of a limit.
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
        """Whether the interval, without slow phases, is within +-NARROW of the latency."""
        return self.high_ms / self.pace - self.low_ms <= 2 * NARROW * self.ms * (1 + 1e-9)

    def decides(self, limit_ms: float) -> bool:
        """Whether the whole interval is on one side of a limit."""
        return self.high_ms <= limit_ms or self.low_ms > limit_ms

    def as_cost(self) -> dict[str, float]:
        """Return the fields of `Cost` that it fills."""
        names = ("ms", "spread_ms", "low_ms", "high_ms")
        return {f"latency_{name}": getattr(self, name) for name in names}

    def __str__(self) -> str:
        """Return the latency with its interval, and warnings about it."""
        text = f"{self.ms:.4g} ms, 95 % of processes {self.low_ms:.4g} to {self.high_ms:.4g}"
        if not self.is_narrow:
            text += f"; not within {100 * NARROW:g} %"
        busy = self.contention is not None and self.contention > BUSY
        return text + ("; the machine was busy" if busy else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Milliseconds a run in one fresh process; contention and pace as in `Latency`."""

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
    measure: Callable[[], Round], limits: RoundLimits, limit_ms: float | None = None
) -> Latency:
    """Return the latency of rounds, measured until its interval is narrow or a limit is reached.

    Stops early, with `is_cut`, once the whole interval is on one side of `limit_ms`, after one
    round if it is far from it: infinity takes one round.
    """
    rounds: list[Round] = []
    end = time.monotonic() + limits.max_seconds
    while True:
        rounds.append(measure())
        if 1 < len(rounds) < _FEWEST:
            continue
        found = latency_of_rounds(rounds)
        if len(rounds) >= limits.min_rounds and (
            found.is_narrow or len(rounds) == limits.max_rounds or time.monotonic() > end
        ):
            return found
        if limit_ms is not None and found.decides(limit_ms):
            return replace(found, is_cut=True)


def latency_of_rounds(rounds: list[Round]) -> Latency:
    """Return the median of 3 or more rounds, and the t interval of their logs for one more.

    The interval of a single round is ONE_ROUND.
    """
    logs = np.log([found.ms for found in rounds])
    count, half = len(logs), math.log(ONE_ROUND)
    if count > 1:
        half = _T[count - 3] * float(logs.std(ddof=1)) * math.sqrt(1 + 1 / count)
        half = max(half, math.log1p(FLOOR))
    low, middle, high = np.exp(np.quantile(logs, (0.25, 0.5, 0.75)))
    known = [found.contention for found in rounds if found.contention is not None]
    pace = float(np.median([found.pace for found in rounds]))
    return Latency(
        ms=float(middle),
        low_ms=float(middle) * math.exp(-half),
        high_ms=float(middle) * math.exp(half) * pace,
        spread_ms=float(high - low),
        contention=float(np.median(known)) if known else None,
        pace=pace,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Consecutive runs: the lower quartile of their seconds, and wall over CPU time."""

    seconds: float
    contention: float


def time_block(run: Run, clock: Clock, *, seconds: float = _BLOCK_SECONDS) -> Block:
    """Time runs for about `seconds`, at least _BLOCK_RUNS, after one untimed run.

    The lower quartile counts, since any disturbance makes a run longer; on an idle core it equals
    the median to 0.5 %.
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
    return Block(
        seconds=float(np.quantile(times, 0.25)),
        contention=(time.perf_counter() - wall) / spent,
    )


def warm_up(run: Run, clock: Clock) -> float:
    """Run until two blocks in a row agree to 5 %, eleven at most; return the seconds of a run."""
    before = time_block(run, clock).seconds
    for _ in range(10):
        now = time_block(run, clock).seconds
        if abs(now - before) <= _STABLE * before:
            return now
        before = now
    return before


def time_pairs(run: Run, reference: Run, clock: Clock) -> tuple[float, float]:
    """Time a candidate and a reference, both warm, in alternating blocks.

    Returns the median ratio of candidate to reference, and the candidate's wall over CPU time.
    """
    blocks = [(time_block(run, clock), time_block(reference, clock)) for _ in range(_BLOCKS)]
    ratio = np.median([ours.seconds / theirs.seconds for ours, theirs in blocks])
    return float(ratio), float(np.median([ours.contention for ours, _ in blocks]))


def clock_of(threads: int) -> Clock:
    """Return the CPU clock of the process for one thread, the wall clock for several.

    On an idle core both agree (0.508 and 0.507 ms); several threads wait for one another. It is
    the clock of the process, not of the thread: a runtime may compute in another thread.
    """
    return time.process_time if threads == 1 else time.perf_counter


def pin(threads: int) -> None:
    """Pin this thread, and those that it starts, to the last `threads` allowed cores.

    The first cores serve interrupts and other pinned programs. Does nothing where the system
    cannot pin.
    """
    if hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, set(allowed[-threads:]))
