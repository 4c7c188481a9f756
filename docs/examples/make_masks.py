"""Write pictures of boxes and discs with their masks: `make_masks.py FOLDER`."""

import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

COUNTS = {"train": 60, "val": 20, "test": 20}
CLASSES = {"ground": (70, 90, 70), "box": (200, 60, 50), "disc": (60, 90, 210)}
HEIGHT, WIDTH = 48, 64

root = Path(sys.argv[1])
generator = np.random.default_rng(0)
y, x = np.ogrid[:HEIGHT, :WIDTH]
for split, count in COUNTS.items():
    for kind in ("images", "masks"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        ids = np.zeros((HEIGHT, WIDTH), np.uint8)
        top, left = generator.integers(0, HEIGHT - 16), generator.integers(0, WIDTH - 16)
        ids[top : top + 16, left : left + 16] = 1
        down, right = generator.integers(8, HEIGHT - 8), generator.integers(8, WIDTH - 8)
        ids[(y - down) ** 2 + (x - right) ** 2 < 64] = 2
        pixels = np.array(list(CLASSES.values()))[ids] + generator.normal(0, 25, (HEIGHT, WIDTH, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(
            root / "images" / split / f"{number:03d}.jpg"
        )
        Image.fromarray(ids).save(root / "masks" / split / f"{number:03d}.png")
classes = [{"id": i, "name": n, "colour": c} for i, (n, c) in enumerate(CLASSES.items())]
(root / "classes.json").write_text(json.dumps({"classes": classes, "ignore_index": 255}))
print(f"{root}: {sum(COUNTS.values())} images and masks of {len(CLASSES)} classes")
