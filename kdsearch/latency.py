"""Measure how long an exported network takes in ONNX Runtime on this CPU, and remember it.

With one thread a run is timed by the CPU clock of the thread that computes it. On an idle core that
equals the wall clock (0.508 and 0.507 ms). Beside four busy processes on two cores it rose by 5 to
30 %, and the wall medians of networks above 4 ms rose 2 to 10 times. Several threads wait for one
another, so there the wall clock counts. Never imports torch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdsearch.errors import CostError
from kdsearch.measured import Measured, processor
from kdsearch.runtimes.base import Runtime
from kdsearch.runtimes.onnxruntime import open_session
from kdsearch.turns import Turns

_MIN_RUNS = 10
_BLOCKS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Milliseconds a run: the median over blocks of runs of each block's median.

    spread_ms: interquartile range of the blocks' medians. contention: wall time over the CPU time
    of the calling thread; about 1 when the measurement had its core to itself.
    """

    ms: float
    spread_ms: float
    contention: float

    def __post_init__(self) -> None:
        if not (0 < self.ms < math.inf and 0 <= self.spread_ms < math.inf and self.contention > 0):
            raise CostError(f"{self} is not a latency")


def measure(
    onnx: Path | bytes,
    *,
    shape: tuple[int, int, int],
    threads: int = 1,
    batch: int = 1,
    seconds: float = 0.2,
) -> Latency:
    """Time a file, or its bytes, on images [batch, *shape] for about `seconds`, at least 10 runs.

    Raises CostError when ONNX Runtime refuses the file or the images.
    """
    session = open_session(onnx, threads=threads)
    images = np.random.default_rng(0).standard_normal((batch, *shape), dtype=np.float32)
    feed = {session.get_inputs()[0].name: images}
    try:
        session.run(None, feed)
    except Exception as error:  # the runtime's exceptions have no common base
        raise CostError(f"ONNX Runtime cannot run images {images.shape}: {error}") from error
    run = partial(session.run, None, feed)
    _time_runs(run, clock=time.thread_time, seconds=seconds / 10, at_least=2)
    wall, cpu = _time_runs(run, clock=time.thread_time, seconds=seconds, at_least=_MIN_RUNS)
    return _latency(wall, cpu, threads=threads)


def _latency(wall: np.ndarray, cpu: np.ndarray, *, threads: int) -> Latency:
    times = cpu if threads == 1 else wall
    medians = [float(np.median(block)) for block in np.array_split(times, _BLOCKS)]
    low, middle, high = np.quantile(medians, (0.25, 0.5, 0.75))
    return Latency(
        ms=1e3 * float(middle),
        spread_ms=1e3 * float(high - low),
        contention=float(wall.sum() / cpu.sum()),
    )


def _time_runs(
    run: Callable[[], object],
    *,
    clock: Callable[[], float],
    seconds: float,
    at_least: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the wall seconds and the CPU seconds, by `clock`, of each run."""
    wall: list[float] = []
    cpu: list[float] = []
    end = time.perf_counter() + seconds
    while len(wall) < at_least or time.perf_counter() < end:
        wall_start, cpu_start = time.perf_counter(), clock()
        run()
        cpu.append(clock() - cpu_start)
        wall.append(time.perf_counter() - wall_start)
    return np.array(wall), np.array(cpu)


class LatencyCache(Measured[Latency]):
    """Latencies measured on this processor with this runtime, below `latency/`."""

    def __init__(self, cache_dir: Path) -> None:
        super().__init__(cache_dir / "latency", Latency)
        self._turns = Turns(cache_dir)

    def measure(self, onnx: Path | bytes, *, shape: tuple[int, int, int]) -> Latency:
        """Time a file, or its bytes, as `measure` does, while nobody trains on this CPU."""
        with self._turns.measuring():
            return measure(onnx, shape=shape)

    def get_or_measure(self, key: str, make: Callable[[], Latency]) -> Latency:
        """Return what is kept under `key`, the architecture and its target, or keep `make()`."""
        here = f"{processor()} | onnxruntime {version('onnxruntime')}"
        return super().get_or_measure(f"{key} | {here}", make)


def measure_run(
    run: Runtime, images: NDArray[Any], *, threads: int = 1, seconds: float = 0.2
) -> Latency:
    """Time a loaded file of any runtime on `images` for about `seconds`, at least 10 runs.

    The CPU clock is the process's: a runtime may compute in a thread of its own. Nothing else may
    compute in this process meanwhile. Raises ExportError when the file cannot run the images.
    """
    once = partial(run, images)
    _time_runs(once, clock=time.process_time, seconds=seconds / 10, at_least=3)
    wall, cpu = _time_runs(once, clock=time.process_time, seconds=seconds, at_least=_MIN_RUNS)
    return _latency(wall, cpu, threads=threads)
