"""This machine's CPU, by ncnn."""

from __future__ import annotations

from kdsearch.deploy.targets._local import CpuTarget


class Ncnn(CpuTarget):
    """ncnn on the CPU, in float32; it takes ONNX files, which are converted first, and its own."""

    runtime = "ncnn"
    takes = ("ncnn", "onnxruntime")
