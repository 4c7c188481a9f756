"""What tasks share whose networks answer at positions of an image: a body under a head."""

from __future__ import annotations

import colorsys
import json
from typing import ClassVar

from kdsearch.data.base import Colour
from kdsearch.data.sizes import Size, scaled_size, whole_strides
from kdsearch.tasks.base import Task


class PositionTask(Task):
    """A task with classes that have colours, on inputs of whole strides."""

    has_library_networks: ClassVar[bool] = False

    def input_size(self, size: Size, resolution: int) -> Size:
        """Return (H, W) of an input: multiples of 32, so that maps cover the image exactly."""
        height, width = (whole_strides(side) for side in scaled_size(size, resolution))
        return height, width

    def shown_colours(self) -> list[Colour]:
        """Return the colours of the data, or one of its own for each class."""
        return list(self.colours) or [_colour(place) for place in range(len(self.classes))]

    def metadata(self) -> dict[str, str]:
        """Return the classes, in the order of the answers, and a colour for each."""
        return {
            "task": self.name,
            "classes": json.dumps(self.classes),
            "colours": json.dumps(self.shown_colours()),
        }


def _colour(place: int) -> Colour:
    """Return a colour of its own for each class; hues a golden section apart, none black."""
    hue, value = place * 0.618 % 1, 1 - 0.2 * (place % 3)
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, value))
    return red, green, blue
