"""Say what student.onnx sees in some images: `python predict.py IMAGE ... [--top 3]`.

Needs onnxruntime, numpy and pillow alone. Classes and preprocessing are read from the file: the
centred square, in the size of the training images, then in that of the network.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

_MAX_PIXELS = 64_000_000


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
    """Return float32 [1, channels, resolution, resolution] as the file's metadata asks for it."""
    channels, side = int(said["channels"]), int(said["resolution"])
    image = pixels(path, size=int(said["image_size"]), channels=channels)
    mean, std = np.array(json.loads(said["mean"])), np.array(json.loads(said["std"]))
    values = ((image / 255 - mean) / std).astype(np.float32)
    planes = (Image.fromarray(values[:, :, channel]) for channel in range(channels))
    if values.shape[0] != side:
        planes = (plane.resize((side, side), Image.Resampling.BILINEAR) for plane in planes)
    return np.stack([np.asarray(plane) for plane in planes])[None]


def main() -> None:
    """Print the most likely classes of each image."""
    parser = argparse.ArgumentParser(description="Say what student.onnx sees in some images.")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--model", type=Path, default=Path(__file__).with_name("student.onnx"))
    parser.add_argument("--top", type=int, default=3)
    asked = parser.parse_args()
    session = onnxruntime.InferenceSession(asked.model, providers=["CPUExecutionProvider"])
    said = session.get_modelmeta().custom_metadata_map
    classes = json.loads(said["classes"])
    name = session.get_inputs()[0].name
    for path in asked.images:
        (logits,) = session.run(None, {name: network_input(path, said)})
        exponents = np.exp(logits[0] - logits[0].max())
        shares = exponents / exponents.sum()
        best = np.argsort(-shares)[: asked.top]
        told = ", ".join(f"{classes[place]} {100 * shares[place]:.1f} %" for place in best)
        print(f"{path}: {told}")


if __name__ == "__main__":
    main()
