"""What a runtime is: a class that loads one exported file and answers images with logits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, ClassVar

from numpy.typing import NDArray

from kdsearch.errors import ExportError


class Unavailable(ExportError):  # noqa: N818 - a state of this machine, not of the file
    """A runtime or a converter is not installed; the message names what to type."""


def reason_of(done: CompletedProcess[str]) -> str:
    """Return the last line that a converter printed."""
    return (done.stderr.strip() or done.stdout.strip() or "no reason").splitlines()[-1]


class Runtime(ABC):
    """A loaded file: images [B, C, H, W] float32 in, logits [B, K] float32 out, any B >= 1.

    A file that includes the preprocessing takes uint8 [B, H, W, C]. module: to import; install: the
    command that brings it. label: its name in reports.
    """

    module: ClassVar[str]
    install: ClassVar[str]
    label: ClassVar[str]

    @abstractmethod
    def __init__(self, path: Path, *, threads: int = 1) -> None:
        """Load the file at `path`, to run on `threads` CPU threads."""

    @abstractmethod
    def run(self, images: NDArray[Any]) -> NDArray[Any]:
        """Return the logits of contiguous images."""

    def __call__(self, images: NDArray[Any]) -> NDArray[Any]:
        """Return the logits of contiguous images. Raises ExportError when the file cannot run."""
        try:
            return self.run(images)
        except Exception as error:  # the runtimes' exceptions have no common base
            raise ExportError(f"the file cannot run images {images.shape}: {error}") from error

    @classmethod
    def is_installed(cls) -> bool:
        """Whether its module is installed; imports nothing."""
        return find_spec(cls.module) is not None

    @classmethod
    def version(cls) -> str:
        """Return its name and version."""
        return f"{cls.module} {metadata.version(cls.module)}"

    @classmethod
    def prepare(cls) -> None:
        """Import what loading needs; start no thread, since a fork would lack it."""
        import_module(cls.module)
