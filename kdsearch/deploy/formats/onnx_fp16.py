"""ONNX with float16 weights: half the size; the input and the logits stay float32."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnx

from kdsearch.deploy.formats.base import ROUNDED, Format, Source


class OnnxFp16(Format):
    """ONNX, float16 inside; a CPU without such arithmetic computes in float32 all the same."""

    suffix = "-fp16.onnx"
    runtime = "onnxruntime"
    tolerance = ROUNDED

    def write(self, source: Source, path: Path) -> None:
        """Convert the float32 file."""
        from onnxruntime.transformers.float16 import convert_float_to_float16

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the float32 number", UserWarning)  # tiny weights
            proto = convert_float_to_float16(onnx.load(source.onnx), keep_io_types=True)
        path.write_bytes(proto.SerializeToString())
