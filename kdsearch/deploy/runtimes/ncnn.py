"""ncnn networks (.ncnn.param, .ncnn.bin), and ONNX files converted to them; an image at a time."""

from __future__ import annotations

import subprocess
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdsearch.deploy.runtimes.base import Runtime, Unavailable, reason_of
from kdsearch.errors import ExportError
from kdsearch.extras import install


class Ncnn(Runtime):
    """ncnn on the CPU, in float32; by default it computes in float16 or bfloat16 where it can."""

    module = "ncnn"
    install = install("ncnn")
    label = "ncnn"

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        import ncnn

        self._ncnn, self._net = ncnn, ncnn.Net()
        options = self._net.opt
        options.use_vulkan_compute, options.num_threads = False, threads
        for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
            setattr(options, f"use_{name}", False)
        with TemporaryDirectory() as folder:
            if path.suffix == ".onnx":
                file = Path(folder) / "converted.ncnn.param"
                convert(path, file, input_shape=_shape_of(path))
            else:
                file = path
            codes = (
                self._net.load_param(str(file)),
                self._net.load_model(str(file.with_suffix(".bin"))),
            )
        if any(codes) or len(self._net.output_names()) != 1:
            raise ExportError(f"ncnn refuses {path}: codes {codes}; export it again")
        (self._input,), (self._output,) = self._net.input_names(), self._net.output_names()

    def run(self, images: NDArray[Any]) -> NDArray[Any]:
        """Return the file's only output, image by image."""
        return np.stack([self._answer(image) for image in images])

    def _answer(self, image: NDArray[Any]) -> NDArray[Any]:
        extractor = self._net.create_extractor()
        extractor.input(self._input, self._ncnn.Mat(image).clone())
        code, answer = extractor.extract(self._output)
        if code:
            raise ExportError(f"ncnn stops with code {code}")
        return np.array(answer)


def convert(onnx: Path, path: Path, *, input_shape: tuple[int, int, int]) -> None:
    """Write the ncnn files of an ONNX file, float32, by pnnx: `path`, and the .bin next to it.

    pnnx exits with 0 where it fails, so the files are looked for. Raises ExportError where
    none was, and Unavailable without pnnx.
    """
    spec = find_spec("pnnx")
    if spec is None or spec.origin is None:
        raise Unavailable(f"pnnx is not installed: `{install('pnnx')}`")
    program = Path(spec.origin).with_name("pnnx")
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "student.onnx"
        copy.write_bytes(onnx.read_bytes())
        sides = ",".join(map(str, (1, *input_shape)))
        line = [str(program), str(copy), f"inputshape=[{sides}]", "fp16=0"]
        done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=folder)
        written = copy.with_name("student.ncnn.param"), copy.with_name("student.ncnn.bin")
        if not all(file.is_file() for file in written):
            raise ExportError(f"pnnx does not convert {onnx.name}: {reason_of(done)}")
        lines = written[0].read_text(encoding="utf-8").splitlines()[2:]
        if lacking := sorted({line.split()[0] for line in lines if "." in line.split()[0]}):
            raise ExportError(
                f"ncnn has no layer for {', '.join(lacking)} of {onnx.name}; "
                "networks of convolutions convert, most transformers do not"
            )
        path.write_bytes(written[0].read_bytes())
        path.with_suffix(".bin").write_bytes(written[1].read_bytes())


def _shape_of(path: Path) -> tuple[int, int, int]:
    """Return the [C, H, W] that an ONNX file takes."""
    import onnx

    sides = onnx.load(str(path)).graph.input[0].type.tensor_type.shape.dim[1:]
    channels, height, width = (side.dim_value for side in sides)
    return channels, height, width
