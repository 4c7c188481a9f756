"""This machine's CPU, by OpenVINO."""

from __future__ import annotations

from kdsearch.deploy.targets._local import CpuTarget


class OpenVino(CpuTarget):
    """OpenVINO on the CPU, in float32; it takes ONNX files and its own."""

    runtime = "openvino"
    takes = ("openvino", "onnxruntime")
