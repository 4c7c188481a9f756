"""Images of coloured shapes on noise with their boxes, made on the spot, in several layouts."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from kdsearch.data.base import DETECTION, ImageData

CLASSES = ("square", "disc", "ring")
COLOURS = ((220, 40, 40), (40, 80, 220), (230, 200, 40))
SPLITS = {"train": 24, "val": 8, "test": 8}
HEIGHT, WIDTH = 96, 128
SIDES = (12, 40)  # px, of a shape
MOST = 3  # shapes of an image
OBJECTS = pa.struct({"bbox": pa.list_(pa.list_(pa.float32(), 4)), "category": pa.list_(pa.int64())})
Box = tuple[int, int, int, int, int]
Scene = tuple[np.ndarray, list[Box]]


def scene(seed: int, classes: int = 3, height: int = HEIGHT, width: int = WIDTH) -> Scene:
    """Return an image uint8 [H, W, 3] and its boxes x1, y1, x2, y2, class; none overlap."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(60, 140, (height, width, 3))
    y, x = np.mgrid[:height, :width] + 0.5
    boxes: list[Box] = []
    for place in range(int(generator.integers(1, MOST + 1))):
        side = int(generator.integers(*SIDES, endpoint=True))
        left = int(generator.integers(0, width - side, endpoint=True))
        top = int(generator.integers(0, height - side, endpoint=True))
        label = (seed + place) % classes
        box = (left, top, left + side, top + side, label)
        if any(_touch(box, other) for other in boxes):
            continue
        radius = np.hypot(x - left - side / 2, y - top - side / 2)
        shape = np.zeros((height, width), bool)
        shape[top : top + side, left : left + side] = True
        shape &= (label == 0) | (radius <= side / 2)
        shape &= (label != 2) | (radius >= side / 4)
        pixels[shape] = np.array(COLOURS[label]) + generator.integers(-20, 21, (shape.sum(), 3))
        boxes.append(box)
    return pixels.clip(0, 255).astype(np.uint8), boxes


def _touch(one: Box, other: Box) -> bool:
    return all(one[a] <= other[a + 2] and other[a] <= one[a + 2] for a in (0, 1))


def scenes(splits: Mapping[str, int] = SPLITS, classes: int = 3) -> dict[str, list[Scene]]:
    """Return the images of each split with their boxes, equal for each layout."""
    counts = list(splits.values())
    first = [sum(counts[:place]) for place in range(len(counts))]
    return {
        split: [scene(start + number, classes) for number in range(count)]
        for start, (split, count) in zip(first, splits.items(), strict=True)
    }


def write(
    root: Path, layout: str = "coco", *, splits: Mapping[str, int] = SPLITS, classes: int = 3
) -> Path:
    """Write the shapes of some classes in a layout: coco, yolo, voc or parquet."""
    made = scenes(splits, classes)
    _LAYOUTS[layout](root, made, CLASSES[:classes])
    return root


def check(data: ImageData, splits: Mapping[str, int] = SPLITS) -> None:
    """Assert that data read from a layout are these images and boxes."""
    made = scenes(splits)
    codes = [data.classes.index(name) for name in CLASSES]
    assert (data.task, data.size) == (DETECTION, (HEIGHT, WIDTH))
    most = max(len(boxes) for found in made.values() for _, boxes in found)
    for split, drawn in made.items():
        part = getattr(data, split)
        assert part.labels.shape == (len(drawn), most, 5)
        shown = part.at(slice(0, len(part))).numpy()
        for (pixels, boxes), label, image in zip(drawn, part.labels.numpy(), shown, strict=True):
            assert np.array_equal(image.transpose(1, 2, 0), pixels)
            expected = [(*corners, codes[code]) for *corners, code in boxes]
            found = in_pixels(label[: len(boxes)], data.size)
            assert np.allclose(found, expected, atol=2e-3)
            assert (label[len(boxes) :] == (0, 0, 0, 0, -1)).all()


def in_pixels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return labels [..., 5] with boxes in pixels of images of (H, W), to a thousandth."""
    return np.round(labels * np.array([size[1], size[0], size[1], size[0], 1]), 3)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _coco(root: Path, made: Mapping[str, list[Scene]], classes: tuple[str, ...]) -> None:
    for split, found in made.items():
        for number, (pixels, _) in enumerate(found):
            save(root / split / f"{number:02d}.png", pixels)
        content = coco([boxes for _, boxes in found], classes)
        (root / f"{split}.json").write_text(json.dumps(content))


def coco(boxes: list[list[Box]], classes: tuple[str, ...] = CLASSES) -> dict[str, list[dict]]:
    """Return COCO JSON of the boxes of images 00.png, 01.png, ...; category ids are 10, 20, ..."""
    images = [
        {"id": 100 + i, "file_name": f"{i:02d}.png", "width": WIDTH, "height": HEIGHT}
        for i in range(len(boxes))
    ]
    flat = [(100 + i, box) for i, own in enumerate(boxes) for box in own]
    annotations = [
        {"id": 1 + i, "image_id": image, "category_id": 10 * (label + 1), "iscrowd": 0}
        | {"bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": []}
        for i, (image, (x1, y1, x2, y2, label)) in enumerate(flat)
    ]
    categories = [{"id": 10 * (i + 1), "name": name} for i, name in enumerate(classes)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _yolo(root: Path, made: Mapping[str, list[Scene]], classes: tuple[str, ...]) -> None:
    for split, found in made.items():
        for number, (pixels, boxes) in enumerate(found):
            save(root / "images" / split / f"{number:02d}.png", pixels)
            label = root / "labels" / split / f"{number:02d}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("".join(map(yolo, boxes)))
    folders = "".join(f"{split}: images/{split}\n" for split in made)
    (root / "data.yaml").write_text(f"path: .\n{folders}names: [{', '.join(classes)}]\n")


def yolo(box: Box) -> str:
    """Return a line of a label file."""
    x1, y1, x2, y2, label = box
    shares = (x1 + x2) / 2 / WIDTH, (y1 + y2) / 2 / HEIGHT, (x2 - x1) / WIDTH, (y2 - y1) / HEIGHT
    return " ".join(map(str, (label, *shares))) + "\n"


def _voc(root: Path, made: Mapping[str, list[Scene]], classes: tuple[str, ...]) -> None:
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (root / "Annotations").mkdir()
    for split, found in made.items():
        names = [f"{split}_{number:02d}" for number in range(len(found))]
        (lists / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name, (pixels, boxes) in zip(names, found, strict=True):
            save(root / "JPEGImages" / f"{name}.png", pixels)
            (root / "Annotations" / f"{name}.xml").write_text(voc(boxes, classes))


def voc(boxes: list[Box], classes: tuple[str, ...] = CLASSES) -> str:
    """Return an annotation of VOC, whose pixels count from 1 and include both ends."""
    objects = "".join(
        f"<object><name>{classes[label]}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1}"
        f"</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>\n"
        for x1, y1, x2, y2, label in boxes
    )
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    return f"<annotation>{size}\n{objects}</annotation>\n"


def _parquet(root: Path, made: Mapping[str, list[Scene]], classes: tuple[str, ...]) -> None:
    root.mkdir()
    for split, found in made.items():
        images = []
        for pixels, _ in found:
            Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
            images.append({"bytes": file.getvalue(), "path": None})
        rows = [
            {
                "bbox": [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2, _ in boxes],
                "category": [label for *_, label in boxes],
            }
            for _, boxes in found
        ]
        table = pa.table({"image": images, "objects": pa.array(rows, OBJECTS)})
        category = {"feature": {"names": list(classes), "_type": "ClassLabel"}, "_type": "List"}
        features = {"image": {"_type": "Image"}, "objects": {"category": category}}
        text = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": text})
        pq.write_table(table, root / f"{split}-00000-of-00001.parquet")


_LAYOUTS: dict[str, Callable[[Path, Mapping[str, list[Scene]], tuple[str, ...]], None]] = {
    "coco": _coco,
    "yolo": _yolo,
    "voc": _voc,
    "parquet": _parquet,
}
