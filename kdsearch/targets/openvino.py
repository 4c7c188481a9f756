"""This machine's CPU, by OpenVINO."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from kdsearch.errors import CostError
from kdsearch.targets._chain import chain
from kdsearch.targets._hosted import CHANNELS, LENGTHS, SIDE, InTurns
from kdsearch.targets.base import Shape
from kdsearch.timing import Run


class OpenVino(InTurns):
    """OpenVINO on the CPU, in float32."""

    device = "cpu"
    runtime = "openvino"
    extra = "openvino"

    def version(self) -> str:
        """Return the version of OpenVINO. Raises ImportError."""
        return f"openvino {version('openvino')}"

    def prepare(self) -> None:
        """Import OpenVINO and make the references' files."""
        import openvino  # noqa: F401

        for length in LENGTHS:
            chain(length, channels=CHANNELS, side=SIDE)

    def load(self, file: Path, shape: Shape) -> Run:
        """Return a run of an ONNX file."""
        return self._run(file, (self.batch, *shape))

    def reference(self, length: int) -> Run:
        """Return a run of the chain in OpenVINO."""
        file = chain(length, channels=CHANNELS, side=SIDE)
        return self._run(file, (1, CHANNELS, SIDE, SIDE))

    def _run(self, file: Path | bytes, shape: tuple[int, ...]) -> Run:
        import numpy as np
        import openvino

        images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        try:
            core = openvino.Core()
            model = core.read_model(file)
            model.reshape(list(shape))
            # One stream, latency first; else it computes in bfloat16 where the CPU can.
            settings = {
                "INFERENCE_NUM_THREADS": self.threads,
                "INFERENCE_PRECISION_HINT": "f32",
                "PERFORMANCE_HINT": "LATENCY",
            }
            request = core.compile_model(model, "CPU", settings).create_infer_request()
            request.infer([images])
        except RuntimeError as error:
            what = f"a model of {len(file)} bytes" if isinstance(file, bytes) else str(file)
            raise CostError(f"OpenVINO refuses {what} on images {shape}: {error}") from error
        return lambda: request.infer([images])
