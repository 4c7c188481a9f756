"""This machine's CPU, by PyTorch: the program that torch.export writes, run as it stands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdsearch.errors import CostError
from kdsearch.targets._hosted import CHANNELS, SIDE, InTurns
from kdsearch.targets._program import load_program, program_of
from kdsearch.targets.base import Shape
from kdsearch.timing import Run

if TYPE_CHECKING:
    from torch import nn


class Torch(InTurns):
    """PyTorch on the CPU: an exported program (`.pt2`), not compiled."""

    device = "cpu"
    runtime = "torch"

    def version(self) -> str:
        """Return the version of PyTorch."""
        from importlib.metadata import version

        return f"torch {version('torch')}"

    def own_file(self, network: nn.Module, shape: Shape) -> bytes:
        """Return the program."""
        return program_of(network, (self.batch, *shape))

    def prepare(self) -> None:
        """Import PyTorch."""
        import torch
        import torch.export

        torch.set_num_threads(self.threads)

    def load(self, file: Path, shape: Shape) -> Run:
        """Return a run of a `.pt2` program on images of the batch that it was exported for."""
        return self._run(load_program(file), (self.batch, *shape))

    def reference(self, length: int) -> Run:
        """Return a run of the chain as a module."""
        import torch
        from torch import nn

        torch.manual_seed(0)
        convolution = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        chain = nn.Sequential(*[convolution] * length)
        return self._run(chain.eval(), (1, CHANNELS, SIDE, SIDE))

    def _run(self, module: nn.Module, shape: tuple[int, ...]) -> Run:
        import torch

        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))

        def run() -> object:
            with torch.inference_mode():
                return module(images)

        try:
            run()
        except Exception as error:  # a program may raise anything
            raise CostError(f"PyTorch cannot run images {shape}: {error}") from error
        return run
