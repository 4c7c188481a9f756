"""A target: a device and a runtime on which the file of a student is timed.

A target measures *rounds*, each in a process of its own; `deploy.timing` gives the reason. Creating
one does not import its runtime; `require` reports a missing one before a study begins.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeAlias

from kdsearch.deploy import runtimes
from kdsearch.deploy.timing import Round, RoundLimits
from kdsearch.errors import CostError, SpecError

Shape: TypeAlias = tuple[int, int, int]
Note: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingRequest:
    """A file to time, and its input: images [batch, *shape] of a numpy type."""

    file: Path
    shape: Shape
    dtype: str = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Milliseconds of an undisturbed run of a reference network on this host.

    pace: slowdown in the host's slow phases, at least 1.
    """

    ms: float
    pace: float

    def __post_init__(self) -> None:
        if not (0 < self.ms < float("inf") and 1 <= self.pace < float("inf")):
            raise CostError(f"{self} is not a duration")


# Returns the cached reference of a name on this host, or caches the result of the callable.
References: TypeAlias = Callable[[str, Callable[[], Reference]], Reference]


class Target(ABC):
    """A device, its runtime and its settings: threads, images in a batch, a command.

    device, runtime: their names in `front.json`. takes: the `deploy.runtimes` whose files it
    runs, with the first of them; students are priced as ONNX files where possible. shared: the
    PyTorch device whose training steps would disturb a measurement.
    """

    device: ClassVar[str]
    runtime: str
    takes: tuple[str, ...] = ("onnxruntime",)
    shared: ClassVar[str] = "cpu"
    round_limits: ClassVar[RoundLimits] = RoundLimits()

    def __init__(self, *, threads: int = 1, batch: int = 1, command: str = "") -> None:
        self.threads = threads
        self.batch = batch
        self.command = command

    def require(self) -> None:
        """Raise SpecError where the target cannot be used here; the message names what to type."""
        if self.command:
            raise SpecError(
                f"--target {self.name}:{self.command}: only cmd takes a command after the colon"
            )
        try:
            runtimes.require(self.takes[0])
        except runtimes.Unavailable as error:
            raise SpecError(f"--target {self.name}: {error}") from error

    def dry_run(self, shape: Shape, note: Note) -> None:
        """Time a small network, where only that shows that the target works; by default do nothing.

        shape: [C, H, W]. note: receives progress messages. Raises SpecError.
        """
        del shape, note

    @property
    def name(self) -> str:
        """Return the target's name, which is its module's."""
        return type(self).__module__.rpartition(".")[2]

    @abstractmethod
    def version(self) -> str:
        """Return the runtime with its version, and the device if it is not the CPU."""

    def key(self) -> str:
        """Return what a latency depends on except the network and the processor."""
        command = f" | {self.command}" if self.command else ""
        return f"{self.name}{command} | {self.threads} threads | batch {self.batch}"

    @abstractmethod
    def measure_round(self, timing: TimingRequest, references: References | None) -> Round:
        """Time a file in one fresh process; without references by the clock alone.

        Raises CostError where the runtime refuses the file or the images.
        """
