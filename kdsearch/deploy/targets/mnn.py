"""This machine's CPU, by MNN."""

from __future__ import annotations

from kdsearch.deploy.targets._local import CpuTarget


class Mnn(CpuTarget):
    """MNN on the CPU, in float32; it takes ONNX files, which are converted first, and its own."""

    runtime = "mnn"
    takes = ("mnn", "onnxruntime")
