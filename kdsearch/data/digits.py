"""scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels, nothing to download."""

from __future__ import annotations

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from kdsearch.data.base import Sample, Source


def read() -> Source:
    """Return the digits, values 0..16 scaled to 0..255; a fifth each validates and tests."""
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target.astype(np.int64)
    samples = [
        Sample(name=f"digits:{row}", label=int(label), content=Image.fromarray(image))
        for row, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    return Source(
        name="digits",
        classes=tuple(str(name) for name in digits.target_names),
        splits={"train": samples},
        content=[("images", images.tobytes()), ("labels", labels.tobytes())],
        channels=1,
        flip=False,
        held_out=0.2,
    )
