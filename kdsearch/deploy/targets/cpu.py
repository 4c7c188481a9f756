"""This machine's CPU, by ONNX Runtime."""

from __future__ import annotations

from kdsearch.deploy.targets._hosted import InTurns


class Cpu(InTurns):
    """ONNX Runtime on the CPU; the default."""

    runtime = "onnxruntime"
