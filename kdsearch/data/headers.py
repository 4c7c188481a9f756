"""What the header of an image file states: its size, and how EXIF turns it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from kdsearch.data.pixels import UnreadableError
from kdsearch.data.sizes import Size

SWAPPED = (5, 6, 7, 8)  # EXIF orientations that swap the sides
PLAIN = 1  # the orientation of an image that is stored upright


@contextmanager
def opened(content: Path | bytes | Image.Image) -> Iterator[Image.Image]:
    """Open an image, whatever its pixels mean. Raises UnreadableError, then and inside."""
    if isinstance(content, Image.Image):
        yield content
        return
    try:
        with Image.open(io.BytesIO(content) if isinstance(content, bytes) else content) as image:
            yield image
    except (UnreadableError, MemoryError):
        raise
    except Exception as error:  # a hostile file makes Pillow raise anything
        raise UnreadableError(f"{content!r:.200}: {error}") from error


def upright(content: Path | bytes | Image.Image) -> tuple[Size, int]:
    """Return (H, W) of an image after its EXIF rotation, and its EXIF orientation, 1 to 8.

    Raises UnreadableError.
    """
    with opened(content) as image:
        found: Any = (
            image.getexif().get(ExifTags.Base.Orientation) if "exif" in image.info else PLAIN
        )
        turn: int = found if found in range(1, 9) else PLAIN
        width, height = image.size
    return ((width, height) if turn in SWAPPED else (height, width)), turn
