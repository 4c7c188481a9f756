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
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime

from kdsearch.errors import CostError
from kdsearch.measured import Measured, processor
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


def open_session(onnx: Path | bytes, *, threads: int = 1) -> onnxruntime.InferenceSession:
    """Load a file, or its bytes, on the CPU, its operators one after another.

    Raises CostError when ONNX Runtime refuses it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # what goes wrong is raised; nothing else is worth a line
    source = onnx if isinstance(onnx, bytes) else str(onnx)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions have no common base
        what = f"a model of {len(onnx)} bytes" if isinstance(onnx, bytes) else str(onnx)
        raise CostError(f"ONNX Runtime refuses {what}: {error}") from error


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
    except Exception as error:  # as above
        raise CostError(f"ONNX Runtime cannot run images {images.shape}: {error}") from error
    _time_runs(session, feed, seconds=seconds / 10, at_least=2)
    wall, cpu = _time_runs(session, feed, seconds=seconds, at_least=_MIN_RUNS)
    times = cpu if threads == 1 else wall
    medians = [float(np.median(block)) for block in np.array_split(times, _BLOCKS)]
    low, middle, high = np.quantile(medians, (0.25, 0.5, 0.75))
    return Latency(
        ms=1e3 * float(middle),
        spread_ms=1e3 * float(high - low),
        contention=float(wall.sum() / cpu.sum()),
    )


def _time_runs(
    session: onnxruntime.InferenceSession,
    feed: dict[str, np.ndarray],
    *,
    seconds: float,
    at_least: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the wall seconds and the calling thread's CPU seconds of each run."""
    wall: list[float] = []
    cpu: list[float] = []
    end = time.perf_counter() + seconds
    while len(wall) < at_least or time.perf_counter() < end:
        wall_start, cpu_start = time.perf_counter(), time.thread_time()
        session.run(None, feed)
        cpu.append(time.thread_time() - cpu_start)
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
