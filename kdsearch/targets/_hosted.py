"""A target on this machine: its runtime is a Python package, and each round is a fork."""

from __future__ import annotations

import math
from abc import abstractmethod
from pathlib import Path
from typing import cast

from kdsearch.targets._fresh import Fresh, Plain
from kdsearch.targets.base import Kept, Reference, Shape, Target
from kdsearch.timing import (
    Round,
    Run,
    clock_of,
    pin,
    time_pairs,
    warm_up,
)

# A reference is a chain of that many 3x3 convolutions of 32 channels at 16x16: 0.02 to 12 ms here.
CHANNELS, SIDE = 32, 16
LENGTHS = (1, 8, 64, 512)
_ASKED = 3  # processes that time a reference alone; the quickest is what it takes undisturbed


class Hosted(Target):
    """Answers in a fork of a process that has imported its runtime."""

    def __init__(self, *, threads: int = 1, batch: int = 1, command: str = "") -> None:
        super().__init__(threads=threads, batch=batch, command=command)
        cls = type(self)
        settings = {"threads": threads, "batch": batch}
        self._fresh = Fresh(f"{cls.__module__}:{cls.__name__}", settings)

    @abstractmethod
    def prepare(self) -> None:
        """Import what timing needs; open no network and no device."""

    @abstractmethod
    def answer(self, question: Plain) -> Plain:
        """Time what is asked for, in the process that asks."""


class InTurns(Hosted):
    """Times a file on the CPU in turns with a reference network of like duration."""

    @abstractmethod
    def load(self, file: Path, shape: Shape) -> Run:
        """Return a run of a file on images. Raises CostError where the runtime refuses it."""

    @abstractmethod
    def reference(self, length: int) -> Run:
        """Return a run of a chain of convolutions on one image."""

    def take(self, file: Path, shape: Shape, kept: Kept) -> Round:
        """Return what one fork finds: a ratio to a reference, times the time that is kept of it."""
        found = self._fresh.ask({"file": str(file), "shape": shape})
        length = found["length"]

        def measure() -> Reference:
            told = [self._fresh.ask({"length": length}) for _ in range(_ASKED)]
            return Reference(ms=min(cast("float", one["ms"]) for one in told))

        reference = kept(f"a chain of {length}", measure)
        return Round(
            ms=cast("float", found["ratio"]) * reference.ms,
            contention=cast("float", found["contention"]),
        )

    def answer(self, question: Plain) -> Plain:
        """Time a file, or a reference alone."""
        pin(self.threads)
        clock = clock_of(self.threads)
        if "file" not in question:
            alone = self.reference(cast("int", question["length"]))
            warm_up(alone, clock)
            return {"ms": 1e3 * time_pairs(alone, alone, clock).quickest_seconds}
        channels, height, width = cast("list[int]", question["shape"])
        run = self.load(Path(str(question["file"])), (channels, height, width))
        seconds = warm_up(run, clock)
        one = warm_up(self.reference(1), clock)
        length = min(LENGTHS, key=lambda length: abs(math.log(seconds / (length * one))))
        reference = self.reference(length)
        warm_up(reference, clock)
        pairs = time_pairs(run, reference, clock)
        return {"ratio": pairs.ratio, "length": length, "contention": pairs.contention}
