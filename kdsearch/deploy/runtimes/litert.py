"""LiteRT files (.tflite), with a fixed batch of one image. Never imports torch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdsearch.deploy.runtimes.base import Runtime
from kdsearch.extras import install


class LiteRt(Runtime):
    """LiteRT on the CPU; images run one after another, since transformers have a fixed batch."""

    module = "ai_edge_litert"
    install = install("litert")
    label = "LiteRT"

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        self.prepare()
        from ai_edge_litert.interpreter import Interpreter

        self._interpreter = Interpreter(str(path), num_threads=threads)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]

    @classmethod
    def prepare(cls) -> None:
        """Import the interpreter."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ai_edge_litert.interpreter  # noqa: F401

    def run(self, images: NDArray[Any]) -> NDArray[Any]:
        """Return the file's only output, image by image."""
        return np.concatenate([self._answer(image[None]) for image in images])

    def _answer(self, image: NDArray[Any]) -> NDArray[Any]:
        self._interpreter.set_tensor(self._input, image)
        self._interpreter.invoke()
        logits: NDArray[Any] = self._interpreter.get_tensor(self._output)
        return logits
