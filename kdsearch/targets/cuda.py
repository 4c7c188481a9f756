"""A GPU, by PyTorch: the exported program replayed as a CUDA graph, timed by events.

Not yet run on a GPU.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from kdsearch.errors import SpecError
from kdsearch.targets._fresh import Plain
from kdsearch.targets._hosted import Hosted
from kdsearch.targets._program import load_program, program_of
from kdsearch.targets.base import Kept, Shape
from kdsearch.timing import Round, Run

if TYPE_CHECKING:
    from torch import nn

_REPLAYS, _BLOCKS, _WARM_UPS = 20, 16, 3


class Cuda(Hosted):
    """A GPU by PyTorch: a replayed CUDA graph, without what launching costs the host."""

    device = "cuda"
    shared = "cuda:0"
    runtime = "torch, CUDA graph"

    def require(self) -> None:
        """Raise SpecError without a GPU."""
        super().require()
        import torch

        if not torch.cuda.is_available():
            raise SpecError("--target cuda: PyTorch sees no GPU here; the others need none")

    def version(self) -> str:
        """Return the versions of PyTorch and CUDA, and the GPU."""
        import torch

        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
        return f"torch {torch.__version__} | CUDA {torch.version.cuda} | {gpu}"

    def own_file(self, network: nn.Module, shape: Shape) -> bytes:
        """Return the program."""
        return program_of(network, (self.batch, *shape))

    def prepare(self) -> None:
        """Import PyTorch; a child opens the device, which a fork cannot share."""
        import torch.export  # noqa: F401

    def _replay(self, file: Path, shape: Shape) -> Run:
        """Return a replay of the program on images of the batch that it was exported for."""
        import torch

        module = load_program(file).to("cuda")
        images = torch.randn(self.batch, *shape, device="cuda")
        graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.inference_mode():
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(_WARM_UPS):
                    module(images)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(graph):
                module(images)
        return graph.replay

    def take(self, file: Path, shape: Shape, kept: Kept) -> Round:
        """Return what one fork finds; events tell the GPU's own time, so without a reference."""
        del kept
        return Round(ms=cast("float", self._fresh.ask({"file": str(file), "shape": shape})["ms"]))

    def answer(self, question: Plain) -> Plain:
        """Return the milliseconds of a replay, by the GPU's own clock."""
        import torch

        channels, height, width = cast("list[int]", question["shape"])
        replay = self._replay(Path(str(question["file"])), (channels, height, width))

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
