"""Run the same work again and again: on a GPU as a CUDA graph, elsewhere as it is.

Captured work must read all that changes from tensors that stay where they are. Work that cannot
be captured runs eagerly, and `mode` gives the reason. After one capture that failed nothing more is
captured in the process: torch leaves its allocator with a filter of the graph that is gone.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

_WARM_UP = 3  # eager runs before a capture: kernels are chosen, states and tables allocated
_capturing = threading.Lock()  # CUDA allows a process one capture at a time
_failures: list[str] = []  # of captures in this process
_log = logging.getLogger(__name__)


class Repeated:
    """A function that is called many times and does its work on one device.

    modules: whose attributes the function may change; one that changes a number of its own from
    call to call decides on the host, and would be frozen by a capture. before_capture: leaves
    nothing of the last call behind, such as gradients.
    """

    def __init__(
        self,
        work: Callable[[], None],
        device: torch.device,
        *,
        modules: Sequence[nn.Module] = (),
        before_capture: Callable[[], None] | None = None,
        captures: bool = True,
    ) -> None:
        self._work = work
        self._modules = modules
        self._before_capture = before_capture
        self._can_capture = captures and device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None
        self._kind: Hashable = None
        self._runs = 0
        self.mode = "eager"

    def __call__(self, kind: Hashable = None) -> None:
        """Do the work. kind: equal for calls that take the same branches; another captures anew.

        Raises whatever the work raises.
        """
        if kind != self._kind:
            self._forget()
            self._kind = kind
        if self._can_capture and self._graph is None and self._runs >= _WARM_UP:
            self._capture()
        if self._graph is not None:
            self._graph.replay()
        elif self._can_capture:
            self._warm_up()
        else:
            self._work()

    def close(self) -> None:
        """Give the graph's memory back."""
        self._forget()

    def _forget(self) -> None:
        self._runs = 0
        if self._graph is not None:
            self._graph.reset()
            self._graph = None

    def _capture(self) -> None:
        """Capture the work without doing it, or note why it cannot be captured."""
        if self._before_capture is not None:
            self._before_capture()
        graph = torch.cuda.CUDAGraph()
        with _capturing:
            if _failures:
                self._give_up(f"an earlier capture failed: {_failures[0]}")
                return
            try:
                with torch.cuda.graph(
                    graph,
                    stream=torch.cuda.current_stream(),
                    capture_error_mode="thread_local",
                ):
                    self._work()
            except RuntimeError as error:  # it waits for the host, or memory ran out
                _failures.append(str(_first(error)).partition("\n")[0])
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                self._give_up(_failures[0])
                return
        self._graph = graph
        self.mode = "graph"

    def _give_up(self, reason: str) -> None:
        _log.info("no CUDA graph: %s", reason)
        self._can_capture = False
        self.mode = f"eager: {reason}"

    def _warm_up(self) -> None:
        """Do the work eagerly; the last time, see whether it leaves the modules' numbers alone."""
        before = attributes_of(self._modules)
        self._work()
        after = attributes_of(self._modules)
        self._runs += 1
        changed = [name for name, value in after.items() if value != before.get(name)]
        if changed and self._runs >= _WARM_UP:
            self._give_up(f"{changed[0]} changes from step to step")


def free_cached_memory() -> None:
    """Give the cached memory of GPUs back, while nothing is captured: it waits for the device."""
    with _capturing:
        torch.cuda.empty_cache()


def attributes_of(modules: Sequence[nn.Module]) -> dict[str, bool | int | float | str]:
    """Return the plain values that modules hold on the host, by `Class.name (module.path)`."""
    return {
        key: value
        for key, part, name in _attributes(modules)
        if isinstance(value := getattr(part, name), bool | int | float | str)
    }


def set_attributes(modules: Sequence[nn.Module], values: Mapping[str, object]) -> None:
    """Give modules the values that `attributes_of` returned of equal ones."""
    for key, part, name in _attributes(modules):
        if key in values:
            setattr(part, name, values[key])


def _attributes(modules: Sequence[nn.Module]) -> Iterator[tuple[str, nn.Module, str]]:
    for i, module in enumerate(modules):
        for path, part in module.named_modules():
            for name in list(vars(part)):
                yield f"{type(part).__name__}.{name} ({i}.{path})", part, name


def _first(error: BaseException) -> BaseException:
    """Return the first error of a chain: ending a capture that failed raises one more."""
    while error.__context__ is not None:
        error = error.__context__
    return error


_free: dict[torch.device, list[torch.cuda.Stream]] = {}


@contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Queue what follows on a stream of its own, after what is queued now; wait for it at the end.

    Work on the default stream cannot be captured, and keeps that of other threads waiting. Streams
    are used again: torch has 32, and hands out the first of them once more after that, while
    somebody may be capturing on it.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.current_stream(device)
    free = _free.setdefault(device, [])
    try:
        stream = free.pop()
    except IndexError:
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(before)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        before.wait_stream(stream)
        free.append(stream)
