"""A network in ONNX Runtime, one operator after another, and a run of it on made images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from kdsearch.errors import CostError
from kdsearch.timing import Run


def open_session(
    onnx: Path | bytes, *, threads: int = 1, provider: str = "CPUExecutionProvider"
) -> onnxruntime.InferenceSession:
    """Load a file, or its bytes. Raises CostError when ONNX Runtime refuses it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4  # what goes wrong is raised; nothing else is worth a line
    source = onnx if isinstance(onnx, bytes) else str(onnx)
    try:
        return onnxruntime.InferenceSession(source, options, providers=[provider])
    except Exception as error:  # the runtime's exceptions have no common base
        what = f"a model of {len(onnx)} bytes" if isinstance(onnx, bytes) else str(onnx)
        raise CostError(f"ONNX Runtime refuses {what}: {error}") from error


def run_of(session: onnxruntime.InferenceSession, shape: tuple[int, ...]) -> Run:
    """Return a run on images of that shape; it has run once. Raises CostError."""
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    feed = {session.get_inputs()[0].name: images}
    try:
        session.run(None, feed)
    except Exception as error:  # as above
        raise CostError(f"ONNX Runtime cannot run images {images.shape}: {error}") from error
    return lambda: session.run(None, feed)
