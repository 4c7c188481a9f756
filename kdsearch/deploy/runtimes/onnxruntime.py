"""ONNX files, run by ONNX Runtime. Never imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from kdsearch.deploy.runtimes.base import Runtime


def open_session(
    onnx: Path | bytes, *, threads: int = 1, provider: str = "CPUExecutionProvider"
) -> onnxruntime.InferenceSession:
    """Load a file, or its bytes, its operators running one after another."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # errors are raised; nothing else is logged
    source = onnx if isinstance(onnx, bytes) else str(onnx)
    return onnxruntime.InferenceSession(source, options, providers=[provider])


class OnnxRuntime(Runtime):
    """ONNX Runtime on the CPU."""

    module = "onnxruntime"
    install = "onnxruntime"
    label = "ONNX Runtime"

    def __init__(self, path: Path | bytes, *, threads: int = 1) -> None:
        self._session = open_session(path, threads=threads)
        self._input = self._session.get_inputs()[0].name

    def run(self, images: NDArray[Any]) -> NDArray[Any]:
        """Return the file's only output."""
        (logits,) = self._session.run(None, {self._input: images})
        found: NDArray[Any] = logits
        return found

    @classmethod
    def version(cls) -> str:
        """Return its name and version, which onnxruntime-gpu has too."""
        return f"onnxruntime {onnxruntime.__version__}"
