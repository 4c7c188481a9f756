"""Measure how long an exported network takes on its target, and remember it.

`kdsearch.timing` holds the protocol, `kdsearch.targets` the devices. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from kdsearch.measured import Measured, processor
from kdsearch.targets import target_of
from kdsearch.targets.base import Reference, Shape, Target
from kdsearch.timing import Latency, settle
from kdsearch.turns import Turns

__all__ = ["Latency", "LatencyCache", "measure"]
_FORM = "intervals of rounds"  # what an entry says beside its numbers: of which protocol it is


class LatencyCache(Measured[Latency]):
    """Latencies measured on this host for a target, below `latency/`; `cpu` where none is given."""

    def __init__(self, cache_dir: Path, target: Target | None = None) -> None:
        super().__init__(cache_dir / "latency", Latency)
        self.target = target_of("cpu") if target is None else target
        self._references = Measured(cache_dir / "references", Reference)
        self._turns = Turns(cache_dir, self.target.shared)

    def measure(self, file: Path | bytes, *, shape: Shape) -> Latency:
        """Time a file, or its bytes, on images [batch, *shape], while nobody trains beside it.

        Raises CostError when the target refuses the file or the images.
        """
        if isinstance(file, bytes):
            with TemporaryDirectory() as folder:
                path = Path(folder) / "student.onnx"
                path.write_bytes(file)
                return self.measure(path, shape=shape)
        with self._turns.measuring():
            return settle(
                lambda: self.target.take(file, shape, self._reference), self.target.patience
            )

    def get_or_measure(self, key: str, make: Callable[[], Latency]) -> Latency:
        """Return what is kept under `key`, the architecture, for this target, or keep `make()`."""
        return super().get_or_measure(f"{key} | {_FORM} | {self._here()}", make)

    def _reference(self, name: str, make: Callable[[], Reference]) -> Reference:
        return self._references.get_or_measure(f"reference {name} | {self._here()}", make)

    def _here(self) -> str:
        return f"{self.target.key()} | {processor()} | {self.target.version()}"


def measure(file: Path | bytes, *, shape: Shape, target: Target | None = None) -> Latency:
    """Time a file, or its bytes, once, keeping nothing. Raises CostError."""
    with TemporaryDirectory() as folder:
        return LatencyCache(Path(folder), target).measure(file, shape=shape)
