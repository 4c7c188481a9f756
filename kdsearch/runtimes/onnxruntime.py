"""ONNX files, run by ONNX Runtime. Never imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from kdsearch.errors import CostError
from kdsearch.runtimes.base import Runtime


def open_session(onnx: Path | bytes, *, threads: int = 1) -> onnxruntime.InferenceSession:
    """Load a file, or its bytes, on the CPU, its operators one after another.

    Raises CostError when ONNX Runtime refuses it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # what goes wrong is raised; nothing else is worth a line
    source = onnx if isinstance(onnx, bytes) else str(onnx)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's exceptions have no common base
        what = f"a model of {len(onnx)} bytes" if isinstance(onnx, bytes) else str(onnx)
        raise CostError(f"ONNX Runtime refuses {what}: {error}") from error


class OnnxRuntime(Runtime):
    """ONNX Runtime on the CPU."""

    module = "onnxruntime"
    install = "onnxruntime"
    label = "ONNX Runtime"

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        self._session = open_session(path, threads=threads)
        self._input = self._session.get_inputs()[0].name

    def run(self, images: NDArray[Any]) -> NDArray[Any]:
        """Return the file's only output."""
        (logits,) = self._session.run(None, {self._input: images})
        found: NDArray[Any] = logits
        return found
