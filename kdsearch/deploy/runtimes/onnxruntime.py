"""ONNX files, run by ONNX Runtime. Never imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from kdsearch.deploy.runtimes.base import Runtime
from kdsearch.errors import SpecError


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


def onnx_input(file: Path) -> tuple[list[int | None], str]:
    """Return the sides of one input, None where any is accepted, and its type.

    Raises SpecError for a file that does not load.
    """
    try:
        given = open_session(file).get_inputs()[0]
    except Exception as error:  # its exceptions have no common base
        raise SpecError(f"{file}: cannot be loaded: {str(error).splitlines()[0]}") from error
    dtype = "uint8" if given.type == "tensor(uint8)" else "float32"
    return [side if isinstance(side, int) else None for side in given.shape[1:]], dtype


class OnnxRuntime(Runtime):
    """ONNX Runtime on the CPU."""

    module = "onnxruntime"
    install = "pip install onnxruntime"
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
