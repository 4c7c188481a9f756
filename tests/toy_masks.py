"""Images of rectangles and discs with their masks, made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ground", "box", "disc")
COLOURS = ((60, 60, 60), (220, 40, 40), (40, 80, 220))
COUNTS = {"train": 12, "val": 6, "test": 6}
VOID_ID = 9


def scene(seed: int, height: int = 48, width: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Return an image uint8 [H, W, 3] and its ids uint8 [H, W]; the lowest row is void."""
    generator = np.random.default_rng(seed)
    ids = np.zeros((height, width), np.uint8)
    y, x = np.ogrid[:height, :width]
    top, left = generator.integers(2, height // 2), generator.integers(2, width // 2)
    ids[top : top + height // 3, left : left + width // 4] = 1
    down, right = generator.integers(height // 4, height - 8), generator.integers(8, width - 8)
    ids[(y - down) ** 2 + (x - right) ** 2 < (height // 6) ** 2] = 2
    pixels = np.array(COLOURS)[ids] + generator.integers(-30, 31, (height, width, 3))
    ids[-1] = VOID_ID
    return pixels.clip(0, 255).astype(np.uint8), ids


def palette() -> list[int]:
    flat = [value for colour in COLOURS for value in colour]
    return flat + [0] * (768 - len(flat))


def save(root: Path, image: Path, mask: Path, seed: int, **shape: int) -> None:
    """Write one image and its palette mask."""
    pixels, ids = scene(seed, **shape)
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(image)
    shown = Image.frombytes("P", ids.shape[::-1], ids.tobytes())
    shown.putpalette(palette())
    shown.save(mask)


def write(root: Path, *, is_split_first: bool = False, has_classes: bool = True) -> Path:
    """Write a data set in one of the nestings: `train/images` or `images/train`."""
    seed = 0
    for split, count in COUNTS.items():
        image, mask = (
            root / split / part if is_split_first else root / part / split
            for part in ("images", "masks")
        )
        for number in range(count):
            save(root, image / f"{number:02d}.png", mask / f"{number:02d}.png", seed)
            seed += 1
    if has_classes:
        write_classes(root)
    return root


def write_classes(root: Path) -> None:
    entries = [
        {"id": i, "name": name, "colour": list(colour)}
        for i, (name, colour) in enumerate(zip(CLASSES, COLOURS, strict=True))
    ]
    content = {"classes": entries, "ignore_index": VOID_ID}
    (root / "classes.json").write_text(json.dumps(content))
