"""Device lock: training steps share it, a latency measurement owns it.

A readers-writer lock over two files below the cache folder, held by `flock`. It works between
threads, processes and studies that share the folder, and the kernel releases the locks of a dead
process. A waiting measurement holds the gate, so that no further step begins before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from fcntl import LOCK_EX, LOCK_SH, LOCK_UN, flock
from pathlib import Path
from types import TracebackType


class DeviceLock:
    """The lock of one device, for all users of a cache folder."""

    def __init__(self, cache_dir: Path, device: str = "cpu") -> None:
        self._folder = cache_dir / "device_locks"
        self._device = device

    @contextmanager
    def shared(self) -> Iterator[AbstractContextManager[None]]:
        """Yield a lock for one training in one thread, to be entered for each step."""
        with self._open() as (gate, device):
            yield _StepLock(gate, device)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Wait until no step runs on the device, and let none begin until the block ends."""
        with self._open() as (gate, device):
            flock(gate, LOCK_EX)
            flock(device, LOCK_EX)
            yield

    @contextmanager
    def _open(self) -> Iterator[tuple[int, int]]:
        """Open both files anew, since a lock belongs to an open file; closing releases it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (
            (self._folder / f"{self._device}-gate").open("w") as gate,
            (self._folder / f"{self._device}-device").open("w") as device,
        ):
            yield gate.fileno(), device.fileno()


class _StepLock:
    """The shared lock for one step: four system calls, 0.9 us, against a few ms of a step."""

    def __init__(self, gate: int, device: int) -> None:
        self._gate = gate
        self._device = device

    def __enter__(self) -> None:
        flock(self._gate, LOCK_SH)
        flock(self._device, LOCK_SH)
        flock(self._gate, LOCK_UN)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        flock(self._device, LOCK_UN)
