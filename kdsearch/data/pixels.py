"""Decode one image file to uint8 pixels; numpy and Pillow alone.

Training reads images by these rules, and the exported predict.py contains a copy of them.
Animations give their first frame, EXIF rotation is applied, transparency is laid on white, 16-bit
grey is scaled to 8 bits, and 32-bit pixels, which have no known range, are refused. `crop` cuts out
the centred part in the wanted shape, `pad` keeps the whole image between black margins, `squash`
stretches it; resizing is bilinear with antialiasing. Damaged images are never half read.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

# Named, because Pillow would also start Ghostscript for an EPS file that calls itself .jpg.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "AVIF")


class UnreadableError(Exception):
    """An image cannot be decoded; the message is the reason alone."""


@contextmanager
def strict_pillow() -> Iterator[None]:
    """Make Pillow refuse truncated files; enter it before starting threads.

    Its limit on pixels gives way to that of `decode`. Its warnings, as of a damaged EXIF block,
    leave the pixels whole and are not shown.
    """
    Image.init()
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


def dimensions(content: Path | bytes | Image.Image, *, max_megapixels: float) -> tuple[int, int]:
    """Return (width, height) from the header alone. Raises UnreadableError."""
    with _reading(), _opened(content, max_megapixels) as image:
        return image.size


def decode(
    content: Path | bytes | Image.Image,
    *,
    size: int | tuple[int, int],
    channels: int,
    fit: str,
    max_megapixels: float,
) -> tuple[Any, float]:
    """Return uint8 [channels, H, W], and the share of the image that was cut away.

    content: a file, its bytes or an opened image. size: (H, W) or a square's side. Raises
    UnreadableError. Enter `strict_pillow` before.
    """
    height, width = (size, size) if isinstance(size, int) else size
    with _reading(), _opened(content, max_megapixels) as image:
        # A JPEG decodes at 1/2, 1/4 or 1/8 if that is ample.
        image.draft(None, (2 * width, 2 * height))
        upright = ImageOps.exif_transpose(image)
        plain = _in_mode(upright, "RGB" if channels == 3 else "L")
        fitted, cut = _fitted(plain, width, height, fit)
        return np.asarray(fitted).reshape(height, width, channels).transpose(2, 0, 1), cut


@contextmanager
def _reading() -> Iterator[None]:
    """Turn whatever a hostile file makes Pillow raise into UnreadableError."""
    try:
        yield
    except (UnreadableError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UnreadableError(f"not an image of a known format ({', '.join(FORMATS)})") from None
    except Exception as error:
        raise UnreadableError(str(error) or repr(error)) from error


def _opened(content: Path | bytes | Image.Image, max_megapixels: float) -> Image.Image:
    if isinstance(content, Image.Image):
        return content
    if not (len(content) if isinstance(content, bytes) else content.stat().st_size):
        raise UnreadableError("it is empty (0 bytes)")
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    width, height = image.size
    if width * height > 1e6 * max_megapixels:
        image.close()
        raise UnreadableError(
            f"{width} x {height} pixels, more than --max-megapixels {max_megapixels:g}"
        )
    return image


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _in_eight_bits(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == mode else image.convert(mode)


def _in_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255, rounded; Pillow's own conversion clips at 255."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise UnreadableError(
            f"pixels of mode {image.mode!r} have no known range; save 8 or 16 bits"
        )
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _fitted(image: Image.Image, width: int, height: int, fit: str) -> tuple[Image.Image, float]:
    """Return the image in the shape width x height, and the share of it that was cut away."""
    if image.size == (width, height):
        return image, 0.0
    wide, high = float(image.width), float(image.height)
    if fit == "pad":
        scale = min(width / wide, height / high)
        inner = max(1, round(scale * wide)), max(1, round(scale * high))
        canvas = Image.new(image.mode, (width, height))
        canvas.paste(_resized(image, inner), ((width - inner[0]) // 2, (height - inner[1]) // 2))
        return canvas, 0.0
    if fit == "squash":
        return _resized(image, (width, height)), 0.0
    if wide * height > high * width:
        wide = high * width / height
    else:
        high = wide * height / width
    left, top = (image.width - wide) / 2, (image.height - high) / 2
    box = (left, top, left + wide, top + high)
    return _resized(image, (width, height), box), 1 - wide * high / (image.width * image.height)


def _resized(
    image: Image.Image,
    size: tuple[int, int],
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    return image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=3.0)
