"""MNN files (.mnn), and ONNX files converted to them; one network runs batches of any size.

The wheel's own converter command installs a package and reports to a server when it is imported.
Only its compiled module is called here, in a process of its own, as it prints.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdsearch.deploy.runtimes.base import Runtime, reason_of
from kdsearch.errors import ExportError
from kdsearch.extras import install

_CONVERT = """
import sys, _tools
files = ["--modelFile", sys.argv[1], "--MNNModel", sys.argv[2]]
_tools.mnnconvert(["mnnconvert", "-f", "ONNX", *files, "--bizCode", "kdsearch"])
"""


class Mnn(Runtime):
    """MNN on the CPU, in float32."""

    module = "MNN"
    install = install("mnn")
    label = "MNN"

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        with _silent(), TemporaryDirectory() as folder:
            import MNN

            file = Path(folder) / "converted.mnn"
            if path.suffix == ".onnx":
                convert(path, file)
            else:
                file = path
            settings = ({"backend": 0, "numThread": threads, "precision": "high"},)
            manager = MNN.nn.create_runtime_manager(settings)
            self._network = MNN.nn.load_module_from_file(str(file), [], [], runtime_manager=manager)
        self._engine = MNN.expr

    @classmethod
    def prepare(cls) -> None:
        """Import MNN, which prints what the CPU can do."""
        with _silent():
            super().prepare()

    def run(self, images: NDArray[Any]) -> NDArray[Any]:
        """Return the file's only output."""
        engine, images = self._engine, np.ascontiguousarray(images)  # MNN ignores strides
        given = engine.const(images, list(images.shape), engine.NCHW, engine.float)
        (answer,) = self._network.onForward([given])
        found: NDArray[Any] = engine.convert(answer, engine.NCHW).read()
        return found.reshape(tuple(answer.shape)).copy()


def convert(onnx: Path, path: Path) -> None:
    """Write the MNN file of an ONNX file. Raises ExportError where MNN cannot convert it."""
    line = [sys.executable, "-c", _CONVERT, str(onnx), str(path)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if not path.is_file():
        raise ExportError(f"MNN does not convert {onnx.name}: {reason_of(done)}")


@contextmanager
def _silent() -> Iterator[None]:
    """Keep off stdout what compiled code prints there."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
