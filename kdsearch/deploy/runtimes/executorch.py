"""ExecuTorch programs (.pte), their operators by XNNPACK, in batches up to a size in the file.

For some networks the exporter (1.5.1) plans memory for 15 images where MAX_BATCH is requested, so
the limit is read from the file.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from kdsearch.deploy.runtimes.base import Runtime
from kdsearch.extras import install

MAX_BATCH = 64


class ExecuTorch(Runtime):
    """ExecuTorch on the CPU; the number of threads is that of the whole process from then on."""

    module = "executorch"
    install = install("executorch")
    label = "ExecuTorch"

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        self.prepare()
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime as Engine

        if portable_lib._threadpool_get_thread_count() != threads:
            portable_lib._unsafe_reset_threadpool(threads)
        self._program = Engine.get().load_program(path)  # the method does not keep it alive
        self._forward = self._program.load_method("forward")
        self._most = self._forward.metadata.input_tensor_meta(0).sizes()[0]

    @classmethod
    def prepare(cls) -> None:
        """Import the engine; its threads start with the first program."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its imports warn about its own code
            import executorch.extension.pybindings.portable_lib
            import executorch.runtime  # noqa: F401

    def run(self, images: NDArray[Any]) -> NDArray[Any]:
        """Return the program's only output, run in parts where there are many images."""
        parts = range(0, len(images), self._most)
        found = [self._answer(images[start : start + self._most]) for start in parts]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _answer(self, images: NDArray[Any]) -> NDArray[Any]:
        (logits,) = self._forward.execute([torch.from_numpy(images)])
        answer: NDArray[Any] = logits.numpy().copy()  # its memory is used again by the next run
        return answer
