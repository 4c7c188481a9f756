"""ncnn for phones and boards: student.ncnn.param, and student.ncnn.bin with the weights."""

from __future__ import annotations

from pathlib import Path

from kdsearch.deploy import runtimes
from kdsearch.deploy.formats.base import Format, Source


class Ncnn(Format):
    """ncnn, float32; one image at a time."""

    suffix = ".ncnn.param"
    runtime = "ncnn"

    def write(self, source: Source, path: Path) -> None:
        """Convert the ONNX file by pnnx."""
        runtimes.require(self.runtime)
        from kdsearch.deploy.runtimes.ncnn import convert

        convert(source.onnx, path, input_shape=source.input_shape)
