"""Run student.onnx on images: `python predict.py IMAGE ... [--top 3] [--score .25] [--out FOLDER]`.

Needs onnxruntime, numpy and pillow only. Classes and preprocessing are read from the file. An image
is decoded as in training, at the training images' size, then resized to the network's. An image
that cannot be read gets a line on stderr, and the exit code is 1.
Masks are written to the folder `--out`: the classes as a palette PNG, and an overlay.
Boxes of at least `--score` are printed, in pixels of the image as it is shown, and drawn on it.
`--model` names another file, which needs its own runtime and the metrics.json of the same folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from kdsearch.data.pixels import UnreadableError, decode, strict_pillow

_RAW = "uint8"
_MAX_MEGAPIXELS = "64"  # of a file that states no limit
SCORE = 0.25  # of a box that is shown
OVERLAP, MOST = 0.6, 100  # IoU of two boxes of one object; boxes of an image


def sides(text: str) -> tuple[int, int]:
    """Return (H, W) of a size in a file: `32` or `[24, 32]`."""
    found = json.loads(text)
    return (found, found) if isinstance(found, int) else (found[0], found[1])


def network_input(
    path: Path | str, metadata: dict[str, str], max_megapixels: float | None = None
) -> Any:
    """Return an image as the input of a file: float32 [1, channels, H, W].

    metadata: of the file. A file that includes the preprocessing gets uint8 [1, H, W,
    channels]. max_megapixels: by default as in training. Raises UnreadableError.
    """
    channels, size = int(metadata["channels"]), sides(metadata["resolution"])
    limit = max_megapixels or float(metadata.get("max_megapixels", _MAX_MEGAPIXELS))
    with strict_pillow():
        pixels, _ = decode(
            Path(path),
            size=sides(metadata["image_size"]),
            channels=channels,
            fit=metadata.get("fit", "crop"),
            max_megapixels=limit,
        )
    image = pixels.transpose(1, 2, 0).astype(np.float32)
    if metadata.get("input", "").startswith(_RAW):
        return np.rint(scaled(image, size)).astype(np.uint8)[None]
    mean, std = np.array(json.loads(metadata["mean"])), np.array(json.loads(metadata["std"]))
    values = scaled(((image / 255 - mean) / std).astype(np.float32), size)
    return np.ascontiguousarray(values.transpose(2, 0, 1))[None]


def scaled(values: Any, size: tuple[int, int]) -> Any:
    """Return float32 [*size, channels]."""
    if values.shape[:2] == size:
        return values
    planes = (Image.fromarray(values[:, :, channel]) for channel in range(values.shape[2]))
    planes = (plane.resize(size[::-1], Image.Resampling.BILINEAR) for plane in planes)
    return np.stack([np.asarray(plane) for plane in planes], axis=2)


def onnx(file: Path) -> tuple[Callable[[Any], Any], dict[str, str]]:
    """Return a function from images to answers, and the metadata of the ONNX file."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    metadata = session.get_modelmeta().custom_metadata_map
    return lambda images: session.run(None, {name: images})[0], metadata


def openvino(file: Path) -> Callable[[Any], Any]:
    """Return a function from images to answers, by OpenVINO."""
    import openvino

    network = openvino.compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: network(images)[0]


def mnn(file: Path) -> Callable[[Any], Any]:
    """Return a function from images to answers, by MNN."""
    import MNN

    manager = MNN.nn.create_runtime_manager(({"backend": 0, "precision": "high"},))
    network = MNN.nn.load_module_from_file(str(file), [], [], runtime_manager=manager)
    engine = MNN.expr

    def run(images: Any) -> Any:
        images = np.ascontiguousarray(images)  # MNN reads its memory in order
        given = engine.const(images, list(images.shape), engine.NCHW, engine.float)
        answer = engine.convert(network.onForward([given])[0], engine.NCHW)
        return answer.read().copy()  # its memory is used again by the next run

    return run


def ncnn(file: Path) -> Callable[[Any], Any]:
    """Return a function from images to answers, by ncnn; student.ncnn.bin is in its folder."""
    import ncnn as engine

    net = engine.Net()
    for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
        setattr(net.opt, f"use_{name}", False)
    net.load_param(str(file))
    net.load_model(str(file.with_suffix(".bin")))

    def answer(image: Any) -> Any:
        extractor = net.create_extractor()
        extractor.input(net.input_names()[0], engine.Mat(image).clone())
        return np.array(extractor.extract(net.output_names()[0])[1])

    return lambda images: np.stack([answer(image) for image in images])


def litert(file: Path) -> Callable[[Any], Any]:
    """Return a function from images to answers, by LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file))
    (run,) = interpreter.get_signature_list()
    signature = interpreter.get_signature_runner(run)
    (given,) = signature.get_input_details()
    return lambda images: next(iter(signature(**{given: images}).values()))


def executorch(file: Path) -> Callable[[Any], Any]:
    """Return a function from images to answers, by ExecuTorch."""
    import torch
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(file)
    forward = program.load_method("forward")

    def answer(images: Any, *, kept: object = program) -> Any:  # the method does not keep it alive
        del kept
        return forward.execute([torch.from_numpy(images)])[0].numpy()

    return answer


def torch_export(file: Path) -> Callable[[Any], Any]:
    """Return a function from images to answers, by torch."""
    import torch

    network = torch.export.load(file).module()
    return torch.inference_mode()(lambda images: network(torch.from_numpy(images)).numpy())


OTHERS = {
    ".xml": openvino,
    ".tflite": litert,
    ".pte": executorch,
    ".pt2": torch_export,
    ".mnn": mnn,
    ".param": ncnn,
}


def load(file: Path) -> tuple[Callable[[Any], Any], dict[str, str]]:
    """Return a function from images to answers, and the metadata of its input and answers."""
    if file.suffix == ".onnx":
        return onnx(file)
    if file.suffix not in OTHERS:
        raise SystemExit(f"{file}: not one of .onnx, {', '.join(OTHERS)}")
    metadata = json.loads(file.with_name("metrics.json").read_text(encoding="utf-8"))
    return OTHERS[file.suffix](file), metadata["metadata"]


def main() -> None:
    """Print the answer to each image."""
    parser = argparse.ArgumentParser(description="Print what a student answers to images.")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--model", type=Path, default=Path(__file__).with_name("student.onnx"))
    parser.add_argument("--top", type=int, default=3)
    parser.add_argument("--max-megapixels", type=float, help="refuse larger images")
    parser.add_argument("--score", type=float, default=SCORE, help="least score of a box")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of masks and overlays")
    args = parser.parse_args()
    try:
        answer, metadata = load(args.model)
    except (ImportError, OSError) as error:
        sys.exit(f"{args.model}: cannot be loaded: {error}")
    unreadable = 0
    for path in args.images:
        try:
            images = network_input(path, metadata, args.max_megapixels)
        except UnreadableError as error:
            print(f"{path}: cannot be read: {error}", file=sys.stderr)
            unreadable += 1
            continue
        found = answer(images)[0]
        if metadata.get("task") == "segmentation":
            print(f"{path}: {write_masks(path, found, metadata, args.out, args.top)}")
        elif metadata.get("task") == "detection":
            for line in write_boxes(path, found, metadata, args.out, args.score):
                print(f"{path}: {line}")
        else:
            print(f"{path}: {in_words(found, metadata, args.top)}")
    if unreadable:
        sys.exit(1)


def upright(path: Path | str) -> Image.Image:
    """Return an image that was read before, in colours and as it is shown."""
    with Image.open(path) as image:
        width, height = ImageOps.exif_transpose(image).size
    with strict_pillow():
        size, limit = (height, width), float("inf")
        pixels, _ = decode(Path(path), size=size, channels=3, fit="crop", max_megapixels=limit)
    return Image.fromarray(pixels.transpose(1, 2, 0))


def write_masks(path: Path, answer: Any, metadata: dict[str, str], out: Path, top: int) -> str:
    """Write NAME-mask.png, the class of each pixel, and NAME-overlay.png; return them in words."""
    image = upright(path)
    mask = Image.fromarray(mask_of(answer, image.size, sides(metadata["image_size"])))
    colours = [tuple(colour) for colour in json.loads(metadata["colours"])]
    mask.putpalette([value for colour in colours for value in colour])
    out.mkdir(parents=True, exist_ok=True)
    files = [out / f"{path.stem}-{what}.png" for what in ("mask", "overlay")]
    mask.save(files[0])
    Image.blend(image, mask.convert("RGB"), 0.5).save(files[1])
    classes = json.loads(metadata["classes"])
    shares = np.bincount(np.asarray(mask).ravel(), minlength=len(classes)) / np.asarray(mask).size
    best = [place for place in np.argsort(-shares)[:top] if shares[place]]
    listed = ", ".join(f"{classes[place]} {100 * shares[place]:.1f} %" for place in best)
    return f"{listed}; {files[0]}, {files[1]}"


def mask_of(answer: Any, image: tuple[int, int], canvas: tuple[int, int]) -> Any:
    """Return the classes uint8 [height, width] of an image of (width, height).

    answer: logits [K, h, w], resized bilinearly to the canvas (H, W), or classes [h, w].
    """
    if answer.ndim == 3:
        planes = (Image.fromarray(np.asarray(plane, np.float32)) for plane in answer)
        shape = canvas[::-1]
        large = [np.asarray(p.resize(shape, Image.Resampling.BILINEAR)) for p in planes]
        answer = np.argmax(large, axis=0)
    classes = Image.fromarray(answer.astype(np.uint8)).resize(
        canvas[::-1], Image.Resampling.NEAREST
    )
    left, top, wide, high = placed(image, canvas)
    shown = classes.crop((left, top, left + wide, top + high))
    return np.asarray(shown.resize(image, Image.Resampling.NEAREST))


def placed(image: tuple[int, int], canvas: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return (left, top, width, height) of an image (width, height) on a canvas (H, W)."""
    scale = min(canvas[1] / image[0], canvas[0] / image[1])  # as `pad` does
    wide, high = (max(1, round(scale * side)) for side in image)
    return (canvas[1] - wide) // 2, (canvas[0] - high) // 2, wide, high


def write_boxes(
    path: Path, answer: Any, metadata: dict[str, str], out: Path, least: float
) -> list[str]:
    """Write NAME-boxes.png, the image with its boxes; return a line on it, and one a box."""
    image = upright(path)
    boxes, scores, labels = boxes_of(answer, metadata, image.size, least)
    classes, colours = json.loads(metadata["classes"]), json.loads(metadata["colours"])
    draw, line = ImageDraw.Draw(image), max(1, round(min(image.size) / 200))
    font = ImageFont.load_default(size=max(10, round(min(image.size) / 40)))
    found = []
    for box, score, label in zip(boxes.tolist(), scores.tolist(), labels.tolist(), strict=True):
        colour = tuple(colours[label])
        draw.rectangle(box, outline=colour, width=line)
        words = f"{classes[label]} {score:.2f}"
        x1, y1, x2, y2 = draw.textbbox((box[0], box[1]), words, font=font)
        up = min(y1, y2 - box[1])  # above the box where there is room
        draw.rectangle((x1, y1 - up, x2, y2 - up), fill=colour)
        ink = (0, 0, 0) if sum(colour) > 382 else (255, 255, 255)
        draw.text((box[0], box[1] - up), words, fill=ink, font=font)
        found.append(f"{classes[label]} {score:.3f} {' '.join(f'{side:.1f}' for side in box)}")
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"{path.stem}-boxes.png"
    image.save(file)
    return [f"{len(found)} objects; {file}", *found]


def boxes_of(
    answer: Any, metadata: dict[str, str], image: tuple[int, int], least: float = SCORE
) -> tuple[Any, Any, Any]:
    """Return boxes [n, 4] in pixels of an image of (width, height), scores [n] and classes [n].

    answer: [P, 4 + K], x1, y1, x2, y2 in fractions of the input, then a score a class; of a file
    that suppresses boxes itself [n, 6], with one score and the class.
    """
    if "nms" in metadata:
        kept = answer[answer[:, 4] >= least]
        boxes, scores, labels = kept[:, :4].astype(np.float64), kept[:, 4], kept[:, 5].astype(int)
    else:
        boxes, scores, labels = joined(answer, least)
    canvas = sides(metadata["image_size"])
    left, top, wide, high = placed(image, canvas)
    on_canvas = boxes * np.array(canvas)[[1, 0, 1, 0]]
    inside = (on_canvas - [left, top, left, top]) * (np.array(image) / (wide, high))[[0, 1, 0, 1]]
    inside = inside.clip(0, [*image, *image])
    shown = (inside[:, :2] < inside[:, 2:]).all(axis=1)  # else it is in the padding
    return inside[shown], scores[shown], labels[shown]


def joined(answer: Any, least: float = SCORE) -> tuple[Any, Any, Any]:
    """Return one box an object, [n, 4] in fractions, and scores and classes [n], best first.

    answer: [P, 4 + K]. This is the work that follows a network without suppression.
    """
    places, labels = np.nonzero(answer[:, 4:] >= least)
    scores = answer[places, 4 + labels]
    boxes = answer[places, :4].astype(np.float64)
    kept = suppress(boxes, scores, labels)
    return boxes[kept], scores[kept], labels[kept]


def suppress(boxes: Any, scores: Any, labels: Any) -> Any:
    """Return the indices of the best boxes of each class that do not overlap, best first.

    boxes: [n, 4]. Greedy: a box goes where its IoU with a better one of its class is above OVERLAP.
    """
    areas = (boxes[:, 2] - boxes[:, 0]).clip(0) * (boxes[:, 3] - boxes[:, 1]).clip(0)
    kept: list[int] = []
    rest = np.argsort(-scores, kind="stable")
    while len(rest) and len(kept) < MOST:
        best, rest = rest[0], rest[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[rest, :2])
        high = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        both = (high - low).clip(0).prod(axis=1)
        union = areas[best] + areas[rest] - both
        rest = rest[(labels[rest] != labels[best]) | (both <= OVERLAP * union)]
    return np.array(kept, int)


def in_words(answer: Any, metadata: dict[str, str], top: int) -> str:
    """Return the most likely classes where the file names any, else the numbers of an answer."""
    if "classes" not in metadata:
        return " ".join(f"{value:.6g}" for value in np.ravel(answer))
    classes = json.loads(metadata["classes"])
    exponents = np.exp(answer - answer.max())
    shares = exponents / exponents.sum()
    best = np.argsort(-shares)[:top]
    return ", ".join(f"{classes[place]} {100 * shares[place]:.1f} %" for place in best)


if __name__ == "__main__":
    main()
