"""This machine's CPU, by ONNX Runtime."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from kdsearch.targets._chain import chain
from kdsearch.targets._hosted import CHANNELS, LENGTHS, SIDE, InTurns
from kdsearch.targets.base import Shape
from kdsearch.timing import Run


class Cpu(InTurns):
    """ONNX Runtime on the CPU; the default."""

    device = "cpu"
    runtime = "onnxruntime"

    def version(self) -> str:
        """Return the version of ONNX Runtime."""
        return f"onnxruntime {version('onnxruntime')}"

    def prepare(self) -> None:
        """Import ONNX Runtime and make the references' files."""
        from kdsearch.targets import _session  # noqa: F401

        for length in LENGTHS:
            chain(length, channels=CHANNELS, side=SIDE)

    def load(self, file: Path, shape: Shape) -> Run:
        """Return a run of an ONNX file."""
        from kdsearch.targets._session import open_session, run_of

        return run_of(open_session(file, threads=self.threads), (self.batch, *shape))

    def reference(self, length: int) -> Run:
        """Return a run of the chain in ONNX Runtime."""
        from kdsearch.targets._session import open_session, run_of

        file = chain(length, channels=CHANNELS, side=SIDE)
        session = open_session(file, threads=self.threads)
        return run_of(session, (1, CHANNELS, SIDE, SIDE))
