"""Paper of the SVG drawings: a frame with its grid and titles, lines, texts."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from dataclasses import dataclass

from kdsearch.report.words import scaled

_WIDTH, _HEIGHT = 720, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 700, 40, 384
INK = "#1b2026"


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The data range of a drawing, and the map from data to paper."""

    low: tuple[float, float]
    high: tuple[float, float]
    log: bool = False

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the position of a point; points outside the range are moved to its edge."""
        low, high, value = self.low[0], self.high[0], x
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(x)
        across = min(1.0, max(0.0, (value - low) / (high - low)))
        up = min(1.0, max(0.0, (y - self.low[1]) / (self.high[1] - self.low[1])))
        return LEFT + across * (RIGHT - LEFT), BOTTOM - up * (BOTTOM - TOP)

    def draw(
        self, title: str, *, x_title: str, y_title: str, is_percent: bool, inside: Iterable[str]
    ) -> str:
        """Return the whole drawing: paper, grid, titles and the parts inside.

        is_percent: whether a y of 0.5 is written as 50 %.
        """
        parts = []
        for x in _ticks(self.low[0], self.high[0], log=self.log):
            place = self.at(x, self.low[1])[0]
            parts.append(line(place, TOP, place, BOTTOM, "#d8dde3"))
            parts.append(text(place, BOTTOM + 18, scaled(x), anchor="middle"))
        for y in _ticks(self.low[1], self.high[1]):
            place = self.at(self.low[0], y)[1]
            parts.append(line(LEFT, place, RIGHT, place, "#d8dde3"))
            label = f"{100 * y:.4g} %" if is_percent else f"{y:.4g}"
            parts.append(text(LEFT - 8, place + 4, label, anchor="end"))
        parts.append(text((LEFT + RIGHT) / 2, _HEIGHT - 14, x_title, anchor="middle"))
        middle = (TOP + BOTTOM) / 2
        turned = f'transform="rotate(-90 14 {middle})"'
        parts.append(text(14, middle, y_title, anchor="middle", more=turned))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            f'role="img" font-family="sans-serif" font-size="12" fill="{INK}">'
            f'<title>{html.escape(title)}</title><rect width="100%" height="100%" fill="#fff"/>'
            + "".join([*parts, *inside])
            + "</svg>\n"
        )


def _ticks(low: float, high: float, *, log: bool = False) -> list[float]:
    """Return round numbers in the range: 1, 2, 5 of each decade, or about six even steps."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        steps = (1, 2, 5) if high < 300 * low else (1,)
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        return [tick for tick in ticks if low <= tick <= high]
    rough = (high - low) / 6
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def path(x: float, y: float, steps: str, stroke: str, fill: str = "none") -> str:
    """Return a path of SVG from a place on paper."""
    return f'<path d="M{x:.1f} {y:.1f}{steps}" fill="{fill}" stroke="{stroke}" stroke-width="2"/>'


def line(x: float, y: float, to_x: float, to_y: float, colour: str, more: str = "") -> str:
    """Return a line between two places on paper. more: attributes of SVG."""
    return (
        f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" '
        f'stroke="{colour}" {more}/>'
    )


def text(x: float, y: float, words: str, *, anchor: str = "start", more: str = "") -> str:
    """Return a text at a place on paper, escaped. anchor: which end of it lies there."""
    shown = html.escape(words)
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{shown}</text>'
