"""A program of torch.export (.pt2): runs in torch without the code of the network."""

from __future__ import annotations

from pathlib import Path

from kdsearch.deploy.formats._program import program_bytes
from kdsearch.deploy.formats.base import Format, Source


class TorchExport(Format):
    """torch.export, float32; any batch size."""

    suffix = ".pt2"
    runtime = "torch_export"

    def write(self, source: Source, path: Path) -> None:
        """Write the traced program."""
        path.write_bytes(program_bytes(source.network, input_shape=source.input_shape))
