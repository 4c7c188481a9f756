"""Write pictures of squares and discs with their boxes, as COCO JSON: `make_boxes.py FOLDER`."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

COUNTS = {"train": 60, "val": 20, "test": 20}
CLASSES = {"square": (200, 60, 50), "disc": (60, 90, 210)}
HEIGHT, WIDTH = 96, 128

root = Path(sys.argv[1])
generator = np.random.default_rng(0)
y, x = np.mgrid[:HEIGHT, :WIDTH]
for split, count in COUNTS.items():
    (root / split).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(count):
        pixels = generator.normal(90, 25, (HEIGHT, WIDTH, 3))
        for kind, colour in enumerate(CLASSES.values()):
            side = int(generator.integers(14, 40))
            left = int(generator.integers(0, WIDTH // 2 - side)) + kind * WIDTH // 2
            top = int(generator.integers(0, HEIGHT - side))
            shape = np.zeros((HEIGHT, WIDTH), bool)
            shape[top : top + side, left : left + side] = True
            if kind == 1:
                radius = np.hypot(x - left - side / 2 + 0.5, y - top - side / 2 + 0.5)
                shape &= radius <= side / 2
            pixels[shape] += np.array(colour) - 90
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": kind,
                    "bbox": [left, top, side, side],
                }
            )
        name = f"{number:03d}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / split / name)
        images.append({"id": number, "file_name": name, "width": WIDTH, "height": HEIGHT})
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in enumerate(CLASSES)],
    }
    (root / f"{split}.json").write_text(json.dumps(content))
print(f"{root}: {sum(COUNTS.values())} images with boxes of {len(CLASSES)} classes")
