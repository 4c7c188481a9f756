"""OpenVINO's own files (.xml and .bin), run in float32 arithmetic on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from kdsearch.deploy.runtimes.base import Runtime
from kdsearch.extras import install


class OpenVino(Runtime):
    """OpenVINO on the CPU; by default it computes in bfloat16 where the CPU can."""

    module = "openvino"
    install = install("openvino")
    label = "OpenVINO"

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        core = openvino.Core()
        self._compiled = core.compile_model(core.read_model(path), "CPU", settings)

    def run(self, images: NDArray[Any]) -> NDArray[Any]:
        """Return the file's only output."""
        found: NDArray[Any] = self._compiled(images)[0]
        return found
