"""This machine's CPU, by ONNX Runtime."""

from __future__ import annotations

from kdsearch.deploy.targets._local import CpuTarget


class Cpu(CpuTarget):
    """ONNX Runtime on the CPU; the default."""

    runtime = "onnxruntime"
