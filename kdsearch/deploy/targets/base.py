"""What a target is: a device and a runtime that say how long a student's file takes there.

A target is asked for *rounds*, each in a process of its own (`deploy.timing` says why). Making
one costs no import of its runtime; `require` tells what is missing before a study begins.
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
    """A file to time, and what it takes: images [batch, *shape] of a numpy type."""

    file: Path
    shape: Shape
    dtype: str = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Milliseconds a run of a reference network takes on this host when it is undisturbed.

    pace: how many times that it takes in the host's slower moments.
    """

    ms: float
    pace: float

    def __post_init__(self) -> None:
        if not (0 < self.ms < float("inf") and 1 <= self.pace < float("inf")):
            raise CostError(f"{self} is not a duration")


# Returns what is kept on this host under a name, or keeps what the callable measures.
References: TypeAlias = Callable[[str, Callable[[], Reference]], Reference]


class Target(ABC):
    """A device, its runtime and its settings: threads, images in a batch, a command.

    device, runtime: their names in `front.json`. takes: names of `deploy.runtimes` whose files it
    runs, by the first; students are priced as ONNX files where it takes those. shared: the device
    of trainings, as PyTorch names it, that would disturb it.
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
        """Raise SpecError where the target cannot be used here; the message says what to type."""
        if self.command:
            raise SpecError(
                f"--target {self.name}:{self.command}: only cmd takes what stands after a colon"
            )
        try:
            runtimes.require(self.takes[0])
        except runtimes.Unavailable as error:
            raise SpecError(f"--target {self.name}: {error}") from error

    def dry_run(self, shape: Shape, note: Note) -> None:
        """Try what `require` cannot tell, before anything is trained; here nothing.

        shape: of the images. note: is told what takes time. Raises SpecError.
        """
        del shape, note

    @property
    def name(self) -> str:
        """The target's name, which is its file's."""
        return type(self).__module__.rpartition(".")[2]

    @abstractmethod
    def version(self) -> str:
        """Return the runtime with its version, and a device beside the CPU."""

    def key(self) -> str:
        """Return what a latency depends on beside the network and the processor."""
        command = f" | {self.command}" if self.command else ""
        return f"{self.name}{command} | {self.threads} threads | batch {self.batch}"

    @abstractmethod
    def measure_round(self, timing: TimingRequest, references: References) -> Round:
        """Return what one fresh process finds.

        Raises CostError where the runtime refuses the file or the images.
        """
