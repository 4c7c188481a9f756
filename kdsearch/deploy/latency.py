"""Measure the latency of an exported network on its target, and cache it.

`timing` holds the protocol, `targets` the devices. Never imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory

from kdsearch.deploy.device_lock import DeviceLock
from kdsearch.deploy.targets import parse_target, target_for
from kdsearch.deploy.targets.base import Reference, Shape, Target, TimingRequest
from kdsearch.deploy.timing import Latency, measure_rounds
from kdsearch.json_cache import JsonCache, processor

__all__ = ["Latency", "LatencyCache", "measure"]
_PROTOCOL = "rounds and slow moments"  # part of each key: names the way of measuring


class LatencyCache(JsonCache[Latency]):
    """Latencies measured on this host for a target, by default `cpu`, cached below `latency/`."""

    def __init__(self, cache_dir: Path, target: Target | None = None) -> None:
        super().__init__(cache_dir / "latency", Latency)
        self._cache_dir = cache_dir
        self.target = parse_target("cpu") if target is None else target
        self._references = JsonCache(cache_dir / "references", Reference)
        self._device_lock = DeviceLock(self.target.shared)

    def for_runtime(self, name: str) -> LatencyCache:
        """Return the cache for the files of a runtime: this one where its target takes them."""
        target = target_for(name, self.target)
        return self if target is self.target else LatencyCache(self._cache_dir, target)

    def measure(
        self,
        file: Path | bytes,
        *,
        shape: Shape,
        dtype: str = "float32",
        limit: float | None = None,
    ) -> Latency:
        """Time a file, or its bytes, on images [batch, *shape], while no training step runs.

        dtype: `uint8` for a file that includes the preprocessing. limit: in ms; measuring stops
        once the whole interval is on one side of it. Infinity takes one round, by the clock alone
        where the target has a reference: timing that once takes 8 s. Raises CostError when the
        target cannot run the file.
        """
        if isinstance(file, bytes):
            with TemporaryDirectory() as folder:
                suffix = ".onnx" if "onnxruntime" in self.target.takes else ".pt2"
                path = Path(folder) / f"student{suffix}"
                path.write_bytes(file)
                return self.measure(path, shape=shape, dtype=dtype, limit=limit)
        timing = TimingRequest(file=file, shape=shape, dtype=dtype)
        references = None if limit == math.inf else self._reference
        with self._device_lock.exclusive():
            return measure_rounds(
                lambda: self.target.measure_round(timing, references),
                self.target.round_limits,
                limit,
            )

    def alone(self) -> AbstractContextManager[None]:
        """Return the context in which no training step runs on the target's device."""
        return self._device_lock.exclusive()

    def latency_of(
        self, key: str, make: Callable[[], Latency], limit: float | None = None
    ) -> Latency:
        """Return the cached latency of an architecture, `key`, or cache `make()`.

        A latency that was cut at another limit is used only if it decides this one, too. Those
        with a limit are kept apart, so that a repeated study takes the same decisions although
        its front was measured in full in between; those by the clock decide nothing.
        """
        name = f"{key} | {_PROTOCOL} | {self.here()}"
        limited = f"{name} | with a limit"
        if limit == math.inf:
            known = self.get(name) or self.get(limited)
            return known or self.get_or_measure(f"{name} | by the clock", make)
        if limit is not None:
            return self.get_or_measure(
                limited, make, serves=lambda kept: not kept.is_cut or kept.decides(limit)
            )
        known = self.get(limited)
        return known if known and not known.is_cut else self.get_or_measure(name, make)

    def _reference(self, name: str, make: Callable[[], Reference]) -> Reference:
        return self._references.get_or_measure(f"reference {name} | {processor()}", make)

    def here(self) -> str:
        """Return what a latency depends on except the network: target, processor, versions."""
        return f"{self.target.key()} | {processor()} | {self.target.version()}"


def measure(
    file: Path | bytes, *, shape: Shape, dtype: str = "float32", target: Target | None = None
) -> Latency:
    """Time a file, or its bytes, without a cache. Raises CostError."""
    with TemporaryDirectory() as folder:
        return LatencyCache(Path(folder), target).measure(file, shape=shape, dtype=dtype)
