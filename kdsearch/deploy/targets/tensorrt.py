"""A GPU, by TensorRT through ONNX Runtime, where that was built with it.

Not yet run on a GPU.
"""

from __future__ import annotations

import time

from kdsearch.deploy.targets._fork_server import Json
from kdsearch.deploy.targets._local import GpuTarget
from kdsearch.deploy.targets.base import TimingRequest
from kdsearch.deploy.timing import time_block, warm_up
from kdsearch.errors import CostError, SpecError

_PROVIDER = "TensorrtExecutionProvider"
_BLOCKS = 16


class TensorRt(GpuTarget):
    """TensorRT through ONNX Runtime, images already on the GPU, by the wall clock."""

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

    def time(self, timing: TimingRequest) -> Json:
        """Return the milliseconds of a run; images and logits stay on the GPU."""
        import onnxruntime

        from kdsearch.deploy.runtimes.onnxruntime import open_session

        try:
            session = open_session(timing.file, provider=_PROVIDER)
        except Exception as error:  # the runtime's exceptions have no common base
            raise CostError(f"TensorRT refuses {timing.file}: {error}") from error
        binding = session.io_binding()
        binding.bind_ortvalue_input(
            session.get_inputs()[0].name,
            onnxruntime.OrtValue.ortvalue_from_numpy(self.images(timing), "cuda", 0),
        )
        binding.bind_output(session.get_outputs()[0].name, "cuda")

        def run() -> None:
            session.run_with_iobinding(binding)
            binding.synchronize_outputs()

        warm_up(run, time.perf_counter)
        times = sorted(time_block(run, time.perf_counter).seconds for _ in range(_BLOCKS))
        return {"ms": 1e3 * times[_BLOCKS // 4]}
