"""This machine's CPU, by OpenVINO."""

from __future__ import annotations

from kdsearch.deploy.targets._hosted import InTurns


class OpenVino(InTurns):
    """OpenVINO on the CPU, in float32; it takes ONNX files and its own."""

    runtime = "openvino"
    takes = ("openvino", "onnxruntime")
