"""MNN (.mnn) for phones, converted from ONNX."""

from __future__ import annotations

from pathlib import Path

from kdsearch.deploy import runtimes
from kdsearch.deploy.formats.base import Format, Source, Tolerance


class Mnn(Format):
    """MNN, float32; any batch size."""

    suffix = ".mnn"
    runtime = "mnn"
    tolerance = Tolerance(same=0.999, max_rel=1e-3)  # its GELU and softmax: 1.1e-4 of a tiny ViT

    def write(self, source: Source, path: Path) -> None:
        """Convert the ONNX file."""
        runtimes.require(self.runtime)
        from kdsearch.deploy.runtimes.mnn import convert

        convert(source.onnx, path)
