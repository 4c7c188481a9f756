"""The layers of the shipped student: a table, and a drawing of their outputs. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from kdsearch.report import words
from kdsearch.report.tables import Table
from kdsearch.study.summary import Layer, Summary

_STEP, _HIGH, _TEXT = 92, 120, 40  # pixels: width of a layer's place, tallest map, room for texts
_LEAST = 3  # pixels of a side


def layer_table(summary: Summary) -> Table | None:
    """Return name, output, parameters and FLOPs of each layer; None where they are not known."""
    found = () if summary.file is None else summary.file.layers
    if not found:
        return None
    total = sum(layer.flops for layer in found)
    rows = [
        (
            layer.name,
            _shape(layer),
            f"{layer.params:,}",
            words.scaled(layer.flops),
            f"{100 * layer.flops / max(1, total):.1f} %",
        )
        for layer in found
    ]
    params = f"{sum(layer.params for layer in found):,}"
    return Table(
        caption="Layers of the shipped student, from its input to its answer",
        head=("layer", "output", "parameters", "FLOPs", "share of FLOPs"),
        rows=(*rows, ("all", "", params, words.scaled(total), "")),
    )


def drawing(found: Sequence[Layer]) -> str:
    """Return an SVG: one block a layer, as tall as its map and as wide as its channels are many.

    Sides are square roots, widths logarithms; a dark block has many of the FLOPs. '' for no layers.
    """
    shown = [layer for layer in found if layer.shape]
    if not shown:
        return ""
    largest = max(_side(layer) for layer in shown)
    channels = max(_channels(layer) for layer in shown)
    most = max(layer.flops for layer in shown) or 1
    total = sum(layer.flops for layer in found) or 1
    blocks = []
    for place, layer in enumerate(shown):
        middle = (place + 0.5) * _STEP
        height = max(_LEAST, _HIGH * math.sqrt(_side(layer) / largest))
        width = max(_LEAST, 0.6 * _STEP * math.log1p(_channels(layer)) / math.log1p(channels))
        share = layer.flops / total
        blocks.append(
            f'<rect x="{middle - width / 2:.1f}" y="{(_HIGH - height) / 2 + 2:.1f}" '
            f'width="{width:.1f}" height="{height:.1f}" rx="2" '
            f'fill-opacity="{0.15 + 0.85 * layer.flops / most:.2f}"/>'
            + "".join(
                f'<text x="{middle:.1f}" y="{_HIGH + 18 + 15 * line}">{escape(text)}</text>'
                for line, text in enumerate((_clipped(layer.name), f"{100 * share:.0f} %"))
            )
        )
    width, height = len(shown) * _STEP, _HIGH + _TEXT + 2
    label = "layers of the student: height is the side of the map, colour the share of FLOPs"
    return (
        '<div class="wide" tabindex="0" role="region" aria-label="drawing of the layers">'
        f'<svg class="layers" role="img" aria-label="{label}" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}">{"".join(blocks)}</svg></div>'
    )


def _shape(layer: Layer) -> str:
    return " \u00d7 ".join(map(str, layer.shape))


def _channels(layer: Layer) -> int:
    """Return the channels of a map [C, H, W], of tokens [N, D] or of a vector [D]."""
    return layer.shape[0] if len(layer.shape) in (1, 3) else layer.shape[-1]


def _side(layer: Layer) -> float:
    """Return the side of a square with as many positions as the output has."""
    return math.sqrt(math.prod(layer.shape) / _channels(layer))


def _clipped(name: str) -> str:
    return name if len(name) <= 13 else f"\u2026{name[-12:]}"
