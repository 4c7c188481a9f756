"""Print what student.onnx answers to images: `python predict.py IMAGE ... [--top 3]`.

Needs onnxruntime, numpy and pillow alone. Classes and preprocessing are read from the file: the
centred square, in the size of the training images, then in that of the network. `--model` names
another file: its own runtime stands for onnxruntime then, and metrics.json beside it for what the
ONNX file says of itself.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

_MAX_PIXELS = 64_000_000
_RAW = "uint8"


def pixels(path: Path | str, *, size: int, channels: int) -> Any:
    """Return float32 [size, size, channels], 0 to 255, of the centred square of an image."""
    with Image.open(path) as image:
        if image.width * image.height > _MAX_PIXELS:
            raise SystemExit(f"{path}: {image.width} x {image.height} pixels are too many")
        upright = ImageOps.exif_transpose(image)
    if upright.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    plain = upright.convert("RGB" if channels == 3 else "L")
    side = min(plain.size)
    left, top = (plain.width - side) / 2, (plain.height - side) / 2
    if plain.size != (size, size):
        box = (left, top, left + side, top + side)
        plain = plain.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
    return np.asarray(plain, np.float32).reshape(size, size, channels)


def network_input(path: Path | str, said: dict[str, str]) -> Any:
    """Return an image as a file asks for it: float32 [1, channels, resolution, resolution].

    said: what the file tells of its input. One that has the preprocessing inside is given uint8
    [1, resolution, resolution, channels].
    """
    channels, side = int(said["channels"]), int(said["resolution"])
    image = pixels(path, size=int(said["image_size"]), channels=channels)
    if said.get("input", "").startswith(_RAW):
        return np.rint(_resized(image, side)).astype(np.uint8)[None]
    mean, std = np.array(json.loads(said["mean"])), np.array(json.loads(said["std"]))
    values = _resized(((image / 255 - mean) / std).astype(np.float32), side)
    return np.ascontiguousarray(values.transpose(2, 0, 1))[None]


def _resized(values: Any, side: int) -> Any:
    """Return float32 [side, side, channels]."""
    if values.shape[0] == side:
        return values
    planes = (Image.fromarray(values[:, :, channel]) for channel in range(values.shape[2]))
    planes = (plane.resize((side, side), Image.Resampling.BILINEAR) for plane in planes)
    return np.stack([np.asarray(plane) for plane in planes], axis=2)


def onnx(file: Path) -> tuple[Callable[[Any], Any], dict[str, str]]:
    """Return what answers images, and what the ONNX file says of itself."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    said = session.get_modelmeta().custom_metadata_map
    return lambda images: session.run(None, {name: images})[0], said


def openvino(file: Path) -> Callable[[Any], Any]:
    """Return what answers images, by OpenVINO."""
    import openvino

    network = openvino.compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: network(images)[0]


def litert(file: Path) -> Callable[[Any], Any]:
    """Return what answers images, by LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file))
    (run,) = interpreter.get_signature_list()
    signature = interpreter.get_signature_runner(run)
    (given,) = signature.get_input_details()
    return lambda images: next(iter(signature(**{given: images}).values()))


def executorch(file: Path) -> Callable[[Any], Any]:
    """Return what answers images, by ExecuTorch."""
    import torch
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(file)
    forward = program.load_method("forward")

    def answer(images: Any, *, kept: object = program) -> Any:  # the method does not keep it alive
        del kept
        return forward.execute([torch.from_numpy(images)])[0].numpy()

    return answer


def torch_export(file: Path) -> Callable[[Any], Any]:
    """Return what answers images, by torch."""
    import torch

    network = torch.export.load(file).module()
    return torch.inference_mode()(lambda images: network(torch.from_numpy(images)).numpy())


OTHERS = {".xml": openvino, ".tflite": litert, ".pte": executorch, ".pt2": torch_export}


def load(file: Path) -> tuple[Callable[[Any], Any], dict[str, str]]:
    """Return what answers images, and what is known of its input and classes."""
    if file.suffix == ".onnx":
        return onnx(file)
    if file.suffix not in OTHERS:
        raise SystemExit(f"{file}: not one of .onnx, {', '.join(OTHERS)}")
    said = json.loads(file.with_name("metrics.json").read_text(encoding="utf-8"))
    return OTHERS[file.suffix](file), said["metadata"]


def main() -> None:
    """Print the answer to each image."""
    parser = argparse.ArgumentParser(description="Print what a student answers to images.")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--model", type=Path, default=Path(__file__).with_name("student.onnx"))
    parser.add_argument("--top", type=int, default=3)
    asked = parser.parse_args()
    answer, said = load(asked.model)
    for path in asked.images:
        print(f"{path}: {in_words(answer(network_input(path, said))[0], said, asked.top)}")


def in_words(answer: Any, said: dict[str, str], top: int) -> str:
    """Return the most likely classes where the file names any, else the numbers of an answer."""
    if "classes" not in said:
        return " ".join(f"{value:.6g}" for value in np.ravel(answer))
    classes = json.loads(said["classes"])
    exponents = np.exp(answer - answer.max())
    shares = exponents / exponents.sum()
    best = np.argsort(-shares)[:top]
    return ", ".join(f"{classes[place]} {100 * shares[place]:.1f} %" for place in best)


if __name__ == "__main__":
    main()
