"""A program of torch.export (.pt2): runs in torch without the code of the network."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from kdsearch.export._program import program_of
from kdsearch.export.base import Format, Source


class TorchExport(Format):
    """torch.export, float32; any batch size."""

    suffix = ".pt2"
    runtime = "torch_export"

    def write(self, source: Source, path: Path) -> None:
        """Write the traced program."""
        program = program_of(source.network, input_shape=source.input_shape)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.")
            torch.export.save(program, path)
