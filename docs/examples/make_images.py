"""Write scikit-learn's digits as a folder of PNG files: python make_images.py FOLDER."""

import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

PER_CLASS = 120
VALIDATION, TEST = 20, 20

root = Path(sys.argv[1])
digits = load_digits()
seen = dict.fromkeys(range(10), 0)
for pixels, label in zip(digits.images, digits.target, strict=True):
    place = seen[int(label)]
    seen[int(label)] += 1
    if place >= PER_CLASS:
        continue
    split = "test" if place < TEST else "val" if place < TEST + VALIDATION else "train"
    file = root / split / f"digit-{label}" / f"{place:03d}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 15.9).astype("uint8")).resize((16, 16)).save(file)
print(f"{root}: {len(list(root.rglob('*.png')))} images of 10 classes")
