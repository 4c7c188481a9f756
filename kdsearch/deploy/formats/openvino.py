"""OpenVINO's own files, converted from ONNX: student.xml, and student.bin with the weights."""

from __future__ import annotations

from pathlib import Path

from kdsearch.deploy import runtimes
from kdsearch.deploy.formats.base import Format, Source


class OpenVino(Format):
    """OpenVINO, float32; any batch size."""

    suffix = ".xml"
    runtime = "openvino"

    def write(self, source: Source, path: Path) -> None:
        """Convert the ONNX file; by default OpenVINO rounds the weights to float16.

        `openvino.convert_model` would send telemetry; reading the file does not.
        """
        runtimes.require(self.runtime)
        import openvino

        openvino.save_model(openvino.Core().read_model(source.onnx), path, compress_to_fp16=False)
