"""A GPU, by PyTorch: the exported program replayed as a CUDA graph, timed by events.

Not yet run on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdsearch.deploy.targets._fork_server import Json
from kdsearch.deploy.targets._local import GpuTarget
from kdsearch.deploy.targets.base import TimingRequest
from kdsearch.deploy.timing import Run
from kdsearch.errors import CostError, SpecError

if TYPE_CHECKING:
    import torch

_REPLAYS, _BLOCKS, _WARM_UPS = 20, 16, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class _Replay:
    """A CUDA graph and the objects whose memory it reads and writes, which must live as long."""

    graph: torch.cuda.CUDAGraph
    memory: tuple[object, ...]

    def __call__(self) -> None:
        self.graph.replay()


class Cuda(GpuTarget):
    """A GPU by PyTorch: a replayed CUDA graph, without the launch overhead of the host."""

    runtime = "torch, CUDA graph"
    takes = ("torch_export",)

    def require(self) -> None:
        """Raise SpecError without a GPU."""
        super().require()
        import torch

        if not torch.cuda.is_available():
            raise SpecError("--target cuda: PyTorch sees no GPU here; --target cpu needs none")

    def _replay(self, timing: TimingRequest) -> Run:
        """Return a replay of the program on a batch of images."""
        import torch
        from torch.export.passes import move_to_device_pass

        try:  # the pass also moves what the program creates; a module's `to` does not
            module = move_to_device_pass(torch.export.load(timing.file), "cuda").module()
        except Exception as error:  # a damaged archive may raise anything
            raise CostError(
                f"PyTorch refuses {timing.file}; expected a .pt2 program: {error}"
            ) from error
        images = torch.from_numpy(self.images(timing)).to("cuda")
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.inference_mode():
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    module(images)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                logits = module(images)
        return _Replay(graph=graph, memory=(module, images, logits))

    def time(self, timing: TimingRequest) -> Json:
        """Return the milliseconds of a replay, by the GPU's own clock."""
        import torch

        replay = self._replay(timing)

        def block() -> float:
            start, end = (
                torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
                for _ in range(2)
            )
            start.record()
            for _ in range(_REPLAYS):
                replay()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / _REPLAYS

        block()
        times = sorted(block() for _ in range(_BLOCKS))
        return {"ms": times[_BLOCKS // 4]}
