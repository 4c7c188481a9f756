"""A GPU, by TensorRT through ONNX Runtime, where that was built with it.

Not yet run on a GPU.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import cast

from kdsearch.errors import SpecError
from kdsearch.targets._fresh import Plain
from kdsearch.targets._hosted import Hosted
from kdsearch.targets.base import Kept, Shape
from kdsearch.timing import Round, time_block, warm_up

_PROVIDER = "TensorrtExecutionProvider"
_BLOCKS = 16


class TensorRt(Hosted):
    """TensorRT through ONNX Runtime, images already on the GPU, by the wall clock."""

    device = "cuda"
    shared = "cuda:0"
    runtime = "TensorRT in onnxruntime"

    def require(self) -> None:
        """Raise SpecError where ONNX Runtime has no TensorRT."""
        super().require()
        import onnxruntime

        known = onnxruntime.get_available_providers()
        if _PROVIDER not in known:
            raise SpecError(
                f"--target tensorrt: this ONNX Runtime has {', '.join(known)} and not {_PROVIDER}; "
                "`pip install onnxruntime-gpu tensorrt` in place of onnxruntime"
            )

    def version(self) -> str:
        """Return the version of ONNX Runtime, and the GPU."""
        import onnxruntime
        import torch

        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
        return f"onnxruntime {onnxruntime.__version__} | {gpu}"

    def prepare(self) -> None:
        """Import ONNX Runtime; a child opens the device, which a fork cannot share."""
        from kdsearch.targets import _session  # noqa: F401

    def take(self, file: Path, shape: Shape, kept: Kept) -> Round:
        """Return what one fork finds."""
        del kept
        return Round(ms=cast("float", self._fresh.ask({"file": str(file), "shape": shape})["ms"]))

    def answer(self, question: Plain) -> Plain:
        """Return the milliseconds of a run that begins and ends with its images on the GPU."""
        import numpy as np
        import onnxruntime

        from kdsearch.targets._session import open_session

        session = open_session(Path(str(question["file"])), provider=_PROVIDER)
        shape = (self.batch, *cast("list[int]", question["shape"]))
        images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        binding = session.io_binding()
        binding.bind_ortvalue_input(
            session.get_inputs()[0].name,
            onnxruntime.OrtValue.ortvalue_from_numpy(images, "cuda", 0),
        )
        binding.bind_output(session.get_outputs()[0].name, "cuda")

        def run() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        warm_up(run, time.perf_counter)
        times = sorted(time_block(run, time.perf_counter).seconds for _ in range(_BLOCKS))
        return {"ms": 1e3 * times[_BLOCKS // 4]}
