"""Decode one image, whatever a user's folder holds, to uint8 `[C, H, W]`; nothing is guessed.

Animations give their first frame, EXIF rotation is applied, transparency is laid on white, 16-bit
grey is scaled to 8 bits, and 32-bit pixels, which have no known range, are refused. The centred
part in the wanted shape is cut out and resized, bilinear with antialiasing. Damaged images are
never half read.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from kdsearch.data.sizes import Size, as_size
from kdsearch.errors import DataError

MAX_PIXELS = 64_000_000
# Named, because Pillow would also start Ghostscript for an EPS file that calls itself .jpg.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")


class UnreadableError(DataError):
    """An image cannot be decoded; the message is the reason alone."""


@contextmanager
def strict_pillow() -> Iterator[None]:
    """Make Pillow refuse bombs and truncated files; enter it before starting threads.

    Its other warnings (as of a damaged EXIF block) leave the pixels whole and are not shown.
    """
    tolerant = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = tolerant


def dimensions(content: Path | bytes | Image.Image) -> tuple[int, int]:
    """Return (width, height) from the header alone. Raises UnreadableError."""
    with _reading(), _open(content) as image:
        return image.size


def decode(
    content: Path | bytes | Image.Image, *, size: int | Size, channels: int
) -> NDArray[np.uint8]:
    """Return uint8 [channels, H, W]; size: (H, W) or a square's side. Raises UnreadableError."""
    height, width = as_size(size)
    with _reading(), _open(content) as image:
        image.draft(
            None, (2 * width, 2 * height)
        )  # a JPEG decodes at 1/2, 1/4 or 1/8 if that is ample
        upright = ImageOps.exif_transpose(image)
        pixels = _centred(_to_mode(upright, "RGB" if channels == 3 else "L"), width, height)
        return np.asarray(pixels).reshape(height, width, channels).transpose(2, 0, 1)


@contextmanager
def _reading() -> Iterator[None]:
    """Turn whatever a hostile file makes Pillow raise into UnreadableError."""
    try:
        yield
    except (UnreadableError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UnreadableError(f"not an image of a known format ({', '.join(_FORMATS)})") from None
    except Exception as error:
        raise UnreadableError(str(error) or repr(error)) from error


def _open(content: Path | bytes | Image.Image) -> Image.Image:
    if isinstance(content, Image.Image):
        return content
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    image = Image.open(file, formats=_FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS:
        image.close()
        raise UnreadableError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")
    return image


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image if image.mode == mode else image.convert(mode)


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255, rounded; Pillow's own conversion clips at 255."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise UnreadableError(
            f"pixels of mode {image.mode!r} have no known range; save 8 or 16 bits"
        )
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))


def _centred(image: Image.Image, width: int, height: int) -> Image.Image:
    """Cut out the largest centred part of the shape width x height, and resize it to that."""
    if image.size == (width, height):
        return image
    is_tall = image.width * height <= image.height * width
    wide = image.width if is_tall else image.height * width / height
    high = image.width * height / width if is_tall else image.height
    left, top = (image.width - wide) / 2, (image.height - high) / 2
    return image.resize(
        (width, height),
        Image.Resampling.BILINEAR,
        box=(left, top, left + wide, top + high),
        reducing_gap=3.0,
    )
