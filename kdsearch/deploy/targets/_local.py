"""Targets on this machine: the runtime is a Python package, and each round runs in a fork."""

from __future__ import annotations

import math
import os
import time
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from kdsearch.deploy import runtimes
from kdsearch.deploy.targets._fork_server import ForkServer, Json
from kdsearch.deploy.targets._reference_network import conv_chain
from kdsearch.deploy.targets.base import Reference, References, Target, TimingRequest
from kdsearch.deploy.timing import Round, Run, clock_of, pin, time_block, time_pairs, warm_up
from kdsearch.errors import CostError, ExportError, SpecError

if TYPE_CHECKING:
    from numpy.typing import NDArray

# A reference is a chain of so many 3x3 convolutions, 32 channels at 16x16: 0.02 to 12 ms here.
CHAIN = (32, 16, 16)  # [C, H, W]
LENGTHS = (1, 8, 64, 512)
_COMPARISONS = 3  # processes that time a longer reference against the shortest
# Processes that time the shortest one alone, a second each. On a machine with slow phases an eighth
# of all windows of 3 s held no undisturbed block, a twentieth of those of 5 s, none of 8 s.
ALONE_PROCESSES, ALONE_SECONDS = 8, 1.0
_UNDISTURBED, _SLOW = 0.02, 0.95  # quantiles of blocks


class LocalTarget(Target):
    """Times files in forks of a process that has imported the runtime."""

    def __init__(self, *, threads: int = 1, batch: int = 1, command: str = "") -> None:
        super().__init__(threads=threads, batch=batch, command=command)
        cls = type(self)
        self._server = ForkServer(f"{cls.__module__}:{cls.__name__}", self._settings())

    def require(self) -> None:
        """Raise SpecError where it cannot be used here, or with more threads than cores."""
        super().require()
        cores = os.cpu_count() or 1
        if self.threads > cores:
            raise SpecError(f"--threads {self.threads}: this machine has {cores} cores")

    def _settings(self) -> Mapping[str, object]:
        """Return the arguments that create this target in the fork server."""
        return {"threads": self.threads, "batch": self.batch}

    def time_in_fork(self, timing: TimingRequest) -> Json:
        """Return the response of `time` from a fork."""
        request = {"file": str(timing.file), "shape": timing.shape, "dtype": timing.dtype}
        return self._server.request(request)

    def version(self) -> str:
        """Return the version of the runtime."""
        return runtimes.require(self.takes[0]).version()

    def prepare(self) -> None:
        """Import the runtime; each fork opens the device itself, since forks cannot share it."""
        runtimes.require(self.takes[0]).prepare()

    def handle(self, request: Json) -> Json:
        """Time the requested file, in this process."""
        channels, height, width = cast("list[int]", request["shape"])
        timing = TimingRequest(
            file=Path(cast("str", request["file"])),
            shape=(channels, height, width),
            dtype=cast("str", request["dtype"]),
        )
        return self.time(timing)

    @abstractmethod
    def time(self, timing: TimingRequest) -> Json:
        """Time a file in this process. Raises CostError where it does not run."""

    def images(self, timing: TimingRequest) -> NDArray[Any]:
        """Return a batch of random images of the type that the file takes."""
        random = np.random.default_rng(0)
        shape = (self.batch, *timing.shape)
        if timing.dtype == "uint8":
            return random.integers(0, 256, shape, dtype=np.uint8)
        return random.standard_normal(shape, dtype=np.float32)


class GpuTarget(LocalTarget):
    """Times a file on a GPU, without a reference: the device lock keeps trainings off it."""

    device = "cuda"
    shared = "cuda:0"

    def version(self) -> str:
        """Return the versions of the runtime and of CUDA, and the GPU."""
        import torch

        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
        return f"{super().version()} | CUDA {torch.version.cuda} | {gpu}"

    def measure_round(self, timing: TimingRequest, references: References | None) -> Round:
        """Time a file in one fork."""
        del references
        return Round(ms=cast("float", self.time_in_fork(timing)["ms"]))


class CpuTarget(LocalTarget):
    """Times a file on the CPU with the first runtime of `takes`, alternating with a reference.

    The reference is a network of similar duration in ONNX Runtime, whatever the file's runtime.
    """

    device = "cpu"

    def prepare(self) -> None:
        """Import the runtimes of the file and the reference; build the reference networks."""
        super().prepare()
        runtimes.require("onnxruntime").prepare()
        for length in LENGTHS:
            conv_chain(length, CHAIN)

    def measure_round(self, timing: TimingRequest, references: References | None) -> Round:
        """Return the ratio to a reference, from one fork, times the cached time of the latter."""
        found = self.time_in_fork(timing)
        if references is None:
            return Round(
                ms=cast("float", found["ms"]), contention=cast("float", found["contention"])
            )
        reference = self._reference_time(cast("int", found["length"]), references)
        return Round(
            ms=cast("float", found["ratio"]) * reference.ms,
            contention=cast("float", found["contention"]),
            pace=reference.pace,
        )

    def _reference_time(self, length: int, references: References) -> Reference:
        """Return the time of a reference: the shortest is timed alone, longer ones against it."""

        def alone() -> Reference:
            answers = [
                self._server.request({"seconds_alone": ALONE_SECONDS})["blocks"]
                for _ in range(ALONE_PROCESSES)
            ]
            blocks = [ms for found in answers for ms in cast("list[float]", found)]
            ms, slow = map(float, np.quantile(blocks, (_UNDISTURBED, _SLOW)))
            return Reference(ms=ms, pace=slow / ms)

        def compare() -> Reference:
            ratios = [
                self._server.request({"length": length})["ratio"] for _ in range(_COMPARISONS)
            ]
            one = self._reference_time(LENGTHS[0], references)
            ratio = float(np.median(cast("list[float]", ratios)))
            return Reference(ms=ratio * one.ms, pace=one.pace)

        by = runtimes.require("onnxruntime").version()
        name = f"{length} convolutions | {by} | {self.threads} threads"
        return references(name, alone if length == LENGTHS[0] else compare)

    def handle(self, request: Json) -> Json:
        """Time a file, or a reference: the shortest alone, a longer one against it."""
        pin(self.threads)
        if "file" in request:
            return super().handle(request)
        clock, shortest = clock_of(self.threads), self._reference(LENGTHS[0])
        warm_up(shortest, clock)
        if "seconds_alone" in request:
            end = time.perf_counter() + cast("float", request["seconds_alone"])
            blocks = [time_block(shortest, clock).seconds]
            while time.perf_counter() < end:
                blocks.append(time_block(shortest, clock).seconds)
            return {"blocks": [1e3 * seconds for seconds in blocks]}
        longer = self._reference(cast("int", request["length"]))
        warm_up(longer, clock)
        return {"ratio": time_pairs(longer, shortest, clock)[0]}

    def time(self, timing: TimingRequest) -> Json:
        """Return the ratio of a file to a reference of similar duration, and that one's length.

        ms: of the file, by the clock.
        """
        clock = clock_of(self.threads)
        run = self._load(timing)
        seconds = warm_up(run, clock)
        one = warm_up(self._reference(1), clock)
        length = min(LENGTHS, key=lambda length: abs(math.log(seconds / (length * one))))
        reference = self._reference(length)
        warm_up(reference, clock)
        ratio, contention = time_pairs(run, reference, clock)
        found = {"ratio": ratio, "length": length, "contention": contention}
        return {**found, "ms": 1e3 * seconds}

    def _load(self, timing: TimingRequest) -> Run:
        """Return a run of a file, after one run."""
        images = self.images(timing)
        try:
            run = runtimes.load(self.takes[0], timing.file, threads=self.threads)
            run(images)
        except ExportError as error:
            raise CostError(str(error)) from error
        return partial(run.run, images)

    def _reference(self, length: int) -> Run:
        """Return a run of a chain of convolutions on one image."""
        from kdsearch.deploy.runtimes.onnxruntime import OnnxRuntime

        run = OnnxRuntime(conv_chain(length, CHAIN), threads=self.threads)
        images = np.random.default_rng(0).standard_normal((1, *CHAIN), dtype=np.float32)
        return partial(run.run, images)


class RuntimeTarget(CpuTarget):
    """The CPU with any runtime, for file formats that the study's target does not take."""

    def __init__(self, *, runtime: str, threads: int = 1, batch: int = 1) -> None:
        self.runtime = runtime
        self.takes = (runtime,)
        super().__init__(threads=threads, batch=batch)

    @property
    def name(self) -> str:
        """Return the name of the runtime."""
        return self.runtime

    def _settings(self) -> Mapping[str, object]:
        return {**super()._settings(), "runtime": self.runtime}
