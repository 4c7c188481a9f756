"""A colour for each class of data that state none."""

from __future__ import annotations

import colorsys

from kdsearch.data.base import Colour


def colour_of(place: int) -> Colour:
    """Return a colour of its own for each class; hues a golden section apart, none black."""
    hue, value = place * 0.618 % 1, 1 - 0.2 * (place % 3)
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, value))
    return red, green, blue
