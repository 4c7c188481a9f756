"""Write parts of scikit-learn's digits as folders of PNG files: python make_parts.py FOLDER.

old: digits 0 to 6. new: digits 7 to 9, three images each of the others, and unlabelled images.
client-1, client-2: digits 0 to 4 and 5 to 9. shared: three labelled images a class, the others not.
"""

import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

FEW = 3
root = Path(sys.argv[1])
digits = load_digits()


def write(part: str, split: str, label: int, rows: range) -> None:
    """Write some images of a digit into a split, without their class where it is unlabelled."""
    own = [image for image, of in zip(digits.images, digits.target, strict=True) if of == label]
    folder = root / part / split / ("" if split == "unlabeled" else f"digit-{label}")
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        image = Image.fromarray((own[row] * 15.9).astype("uint8"))
        image.save(folder / f"{label}-{row:03d}.png")


for label in range(10):
    client = "client-1" if label < 5 else "client-2"
    write(client, "train", label, range(40, 100))
    write("shared", "train", label, range(100, 100 + FEW))
    write("shared", "unlabeled", label, range(100 + FEW, 160))
    if label < 7:
        write("old", "train", label, range(40, 100))
        write("new", "train", label, range(100, 100 + FEW))
        write("new", "unlabeled", label, range(100 + FEW, 160))
    else:
        write("new", "train", label, range(40, 100))
    for part in (client, "shared", "new", *(["old"] if label < 7 else [])):
        write(part, "test", label, range(20))
        write(part, "val", label, range(20, 40))
print(f"{root}: {len(list(root.rglob('*.png')))} images")
