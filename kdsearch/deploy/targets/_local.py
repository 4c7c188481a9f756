"""A target on this machine: its runtime is a Python package, and each round is a fork."""

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

# A reference is a chain of that many 3x3 convolutions of 32 channels at 16x16: 0.02 to 12 ms here.
CHANNELS, SIDE = 32, 16
LENGTHS = (1, 8, 64, 512)
_ASKED = 3  # processes that compare a longer reference with the shortest
# Processes that watch the shortest one, a second each: of windows of 3 s on a machine with slow
# moments an eighth held no undisturbed block, of 5 s a twentieth, of 8 s none.
WATCHES, WATCH_SECONDS = 8, 1.0
_UNDISTURBED, _SLOW = 0.02, 0.95  # quantiles of blocks


class LocalTarget(Target):
    """Answers in a fork of a process that has imported its runtime."""

    def __init__(self, *, threads: int = 1, batch: int = 1, command: str = "") -> None:
        super().__init__(threads=threads, batch=batch, command=command)
        cls = type(self)
        self._server = ForkServer(f"{cls.__module__}:{cls.__name__}", self._settings())

    def require(self) -> None:
        """Raise SpecError where it cannot be used here, or has fewer cores than threads."""
        super().require()
        cores = os.cpu_count() or 1
        if self.threads > cores:
            raise SpecError(f"--threads {self.threads}: this machine has {cores} cores")

    def _settings(self) -> Mapping[str, object]:
        """Return what makes the same target in the process that answers."""
        return {"threads": self.threads, "batch": self.batch}

    def ask(self, timing: TimingRequest) -> Json:
        """Return what a fork finds of a file."""
        question = {"file": str(timing.file), "shape": timing.shape, "dtype": timing.dtype}
        return self._server.ask(question)

    @abstractmethod
    def prepare(self) -> None:
        """Import what timing needs; open no network and no device."""

    def answer(self, question: Json) -> Json:
        """Time what is asked for, in the process that asks."""
        channels, height, width = cast("list[int]", question["shape"])
        timing = TimingRequest(
            file=Path(cast("str", question["file"])),
            shape=(channels, height, width),
            dtype=cast("str", question["dtype"]),
        )
        return self.time(timing)

    @abstractmethod
    def time(self, timing: TimingRequest) -> Json:
        """Time a file, in the process that asks. Raises CostError where it does not run."""

    def images(self, timing: TimingRequest) -> NDArray[Any]:
        """Return made images, a batch, of the type that the file takes."""
        made = np.random.default_rng(0)
        shape = (self.batch, *timing.shape)
        if timing.dtype == "uint8":
            return made.integers(0, 256, shape, dtype=np.uint8)
        return made.standard_normal(shape, dtype=np.float32)


class CpuTarget(LocalTarget):
    """Times a file on the CPU by the runtime that `takes` names first, in turns with a reference.

    The reference is a network in ONNX Runtime of like duration, whatever runtime the file has.
    """

    device = "cpu"

    def version(self) -> str:
        """Return the version of the runtime."""
        return runtimes.require(self.takes[0]).version()

    def prepare(self) -> None:
        """Import the runtimes of the file and of the reference, and make the references' files."""
        for name in (self.takes[0], "onnxruntime"):
            runtimes.require(name).prepare()
        for length in LENGTHS:
            conv_chain(length, channels=CHANNELS, side=SIDE)

    def measure_round(self, timing: TimingRequest, references: References) -> Round:
        """Return what one fork finds: a ratio to a reference, times the time that is kept of it."""
        found = self.ask(timing)
        reference = self._known(cast("int", found["length"]), references)
        return Round(
            ms=cast("float", found["ratio"]) * reference.ms,
            contention=cast("float", found["contention"]),
            pace=reference.pace,
        )

    def _known(self, length: int, references: References) -> Reference:
        """Return what a chain takes: the shortest is watched, longer ones are compared with it."""

        def callback() -> Reference:
            told = [self._server.ask({"watch": WATCH_SECONDS})["blocks"] for _ in range(WATCHES)]
            blocks = [ms for found in told for ms in cast("list[float]", found)]
            ms, slow = map(float, np.quantile(blocks, (_UNDISTURBED, _SLOW)))
            return Reference(ms=ms, pace=slow / ms)

        def compare() -> Reference:
            told = [self._server.ask({"length": length})["ratio"] for _ in range(_ASKED)]
            one = self._known(LENGTHS[0], references)
            ratio = float(np.median(cast("list[float]", told)))
            return Reference(ms=ratio * one.ms, pace=one.pace)

        by = runtimes.require("onnxruntime").version()
        name = f"a chain of {length}, watched | {by} | {self.threads} threads"
        return references(name, callback if length == LENGTHS[0] else compare)

    def answer(self, question: Json) -> Json:
        """Time a file, or a reference: the shortest alone, a longer one against that."""
        pin(self.threads)
        if "file" in question:
            return super().answer(question)
        clock, shortest = clock_of(self.threads), self._reference(LENGTHS[0])
        warm_up(shortest, clock)
        if "watch" in question:
            end = time.perf_counter() + cast("float", question["watch"])
            blocks = [time_block(shortest, clock).seconds]
            while time.perf_counter() < end:
                blocks.append(time_block(shortest, clock).seconds)
            return {"blocks": [1e3 * seconds for seconds in blocks]}
        longer = self._reference(cast("int", question["length"]))
        warm_up(longer, clock)
        return {"ratio": time_pairs(longer, shortest, clock).ratio}

    def time(self, timing: TimingRequest) -> Json:
        """Return the ratio of a file to a reference of like duration, and its length."""
        clock = clock_of(self.threads)
        run = self._load(timing)
        seconds = warm_up(run, clock)
        one = warm_up(self._reference(1), clock)
        length = min(LENGTHS, key=lambda length: abs(math.log(seconds / (length * one))))
        reference = self._reference(length)
        warm_up(reference, clock)
        pairs = time_pairs(run, reference, clock)
        return {"ratio": pairs.ratio, "length": length, "contention": pairs.contention}

    def _load(self, timing: TimingRequest) -> Run:
        """Return a run of a file, which has run once."""
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

        run = OnnxRuntime(conv_chain(length, channels=CHANNELS, side=SIDE), threads=self.threads)
        shape = (1, CHANNELS, SIDE, SIDE)
        return partial(run.run, np.random.default_rng(0).standard_normal(shape, dtype=np.float32))


class RuntimeTarget(CpuTarget):
    """The CPU by any runtime, for files of formats that no study's target takes."""

    def __init__(self, *, runtime: str, threads: int = 1, batch: int = 1) -> None:
        self.runtime = runtime
        self.takes = (runtime,)
        super().__init__(threads=threads, batch=batch)

    @property
    def name(self) -> str:
        """The name of the runtime."""
        return self.runtime

    def _settings(self) -> Mapping[str, object]:
        return {**super()._settings(), "runtime": self.runtime}
