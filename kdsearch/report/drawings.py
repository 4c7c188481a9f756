"""The front and the curves as SVG files, for papers and pull requests. No plotly, no browser."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from kdsearch.report import words
from kdsearch.report.axes import (
    BLUE,
    GREEN,
    GREY,
    PURPLE,
    VERMILLION,
    is_log,
    shown_limit,
    span,
    without_strays,
)
from kdsearch.report.marks import Mark, finite, sort_out
from kdsearch.spec import TrialRecord
from kdsearch.study.summary import Summary
from kdsearch.tasks.base import Metric

_WIDTH, _HEIGHT = 720, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 700, 40, 384
_INK = "#1b2026"
_SHAPES: Mapping[str, Callable[[float, float], str]] = {
    "dominated": lambda x, y: f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{GREY}"/>',
    "front": lambda x, y: f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{BLUE}"/>',
    "mean over seeds": lambda x, y: _path(x, y, "m-5-5h10v10h-10z", BLUE),
    "control": lambda x, y: _path(x, y, "m0-6l6 6l-6 6l-6-6z", GREEN),
    "teacher": lambda x, y: _path(
        x, y, "m0-8l2 6h6l-5 4l2 6l-5-4l-5 4l2-6l-5-4h6z", PURPLE, PURPLE
    ),
    "to ship": lambda x, y: (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="9" fill="none" stroke="{VERMILLION}" '
        'stroke-width="3"/>'
    ),
}


def drawings(summary: Summary, records: Sequence[TrialRecord]) -> dict[str, str]:
    """Return the figures that have data, by file name."""
    found = {}
    priced = [m for m in sort_out(summary, records).students() if m.val is not None]
    if any(mark.costs[summary.budget.axis()] is not None for mark in priced):
        found["front.svg"] = _front(summary, records)
    if any(record.curve for record in records):
        found["curves.svg"] = _curves(summary, records)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Frame:
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
        return _LEFT + across * (_RIGHT - _LEFT), _BOTTOM - up * (_BOTTOM - _TOP)

    def draw(self, title: str, x_title: str, metric: Metric, inside: Iterable[str]) -> str:
        """Return the whole drawing: paper, grid, titles and the parts inside."""
        parts = []
        for x in _ticks(self.low[0], self.high[0], log=self.log):
            place = self.at(x, self.low[1])[0]
            parts.append(_line(place, _TOP, place, _BOTTOM, "#d8dde3"))
            parts.append(_text(place, _BOTTOM + 18, words.scaled(x), anchor="middle"))
        for y in _ticks(self.low[1], self.high[1]):
            place = self.at(self.low[0], y)[1]
            parts.append(_line(_LEFT, place, _RIGHT, place, "#d8dde3"))
            label = f"{100 * y:.4g} %" if metric.is_percent else f"{y:.4g}"
            parts.append(_text(_LEFT - 8, place + 4, label, anchor="end"))
        parts.append(_text((_LEFT + _RIGHT) / 2, _HEIGHT - 14, x_title, anchor="middle"))
        middle = (_TOP + _BOTTOM) / 2
        turned = f'transform="rotate(-90 14 {middle})"'
        label = f"validation {metric.label}"
        parts.append(_text(14, middle, label, anchor="middle", more=turned))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            f'role="img" font-family="sans-serif" font-size="12" fill="{_INK}">'
            f'<title>{html.escape(title)}</title><rect width="100%" height="100%" fill="#fff"/>'
            + "".join([*parts, *inside])
            + "</svg>\n"
        )


def _front(summary: Summary, records: Sequence[TrialRecord]) -> str:
    marks, axis = sort_out(summary, records), summary.budget.axis()
    groups: dict[str, Sequence[Mark]] = {
        "dominated": marks.dominated,
        "front": marks.front,
        "mean over seeds": marks.refits,
        "control": marks.controls,
        "teacher": (marks.teacher,),
        "to ship": marks.best,
    }
    placed = {
        name: [(cost, mark.val, mark) for mark in group if (cost := mark.costs[axis]) and mark.val]
        for name, group in groups.items()
    }
    points = [point for group in placed.values() for point in group]
    costs = [cost for cost, _, _ in points] + [getattr(e, axis) for e in summary.baselines]
    limit = shown_limit(summary.budget, axis, costs)
    known = [cost for cost in (*costs, limit) if cost is not None]
    log = is_log(known)
    below, above = (min(known) / 1.3, max(known) * 1.3) if log else (0.0, max(known) * 1.08)
    always = [val for name in placed if name != "dominated" for _, val, _ in placed[name]]
    low, high = span(without_strays((val for _, val, _ in points), always))
    frame = _Frame(low=(below, low), high=(above, high), log=log)
    parts = [_upright(frame, getattr(e, axis), words.network(e.name)) for e in summary.baselines]
    parts.append(_upright(frame, limit, f"budget {words.amount(axis, limit)}", "6 4"))
    stairs = [frame.at(cost, val) for cost, val, _ in placed["front"]]
    steps = "".join(f"H{x:.1f}V{y:.1f}" for x, y in stairs[1:])
    if stairs:
        parts.append(_path(*stairs[0], steps, BLUE))
    for name, group in placed.items():
        for cost, val, mark in group:
            x, y = frame.at(cost, val)
            if mark.error and name != "to ship":
                ends = [frame.at(cost, val + sign * mark.error)[1] for sign in (-1, 1)]
                parts.append(_line(x, ends[0], x, ends[1], GREY))
            if mark.delay and axis == "latency_ms" and name != "to ship":
                sides = [frame.at(end, val)[0] for end in mark.delay]
                parts.append(_line(sides[0], y, sides[1], y, GREY))
            parts.append(_SHAPES[name](x, y))
    for i, name in enumerate(name for name, group in placed.items() if group):
        x = _LEFT + 8 + 110 * i
        parts.append(
            _SHAPES[name](x, 20)
            + _text(x + 14, 24, words.ship_mark(summary) if name == "to ship" else name)
        )
    title = words.AXES[axis].title + (" (log scale)" if log else "")
    return frame.draw(f"{summary.study}: the front", title, summary.metric, parts)


def _curves(summary: Summary, records: Sequence[TrialRecord]) -> str:
    trained, ships = [record for record in records if record.curve], summary.to_ship()
    longest = max(2, *(len(record.curve) for record in trained))
    low, high = span(value for record in trained for value in record.curve)
    frame = _Frame(low=(1, low), high=(longest, high))
    parts = []
    for record in sorted(trained, key=lambda record: record.number == ships):
        known = [(i, value) for i, value in enumerate(record.curve, 1) if finite(value) is not None]
        points = [frame.at(*point) for point in known]
        is_best = record.number == ships
        look = f'stroke="{VERMILLION if is_best else BLUE}" stroke-width="{3 if is_best else 1}"'
        faint = 1 if is_best else max(0.08, min(0.7, 8 / len(trained)))
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{joined}" fill="none" {look} opacity="{faint:.2f}"/>')
        if record.state == "pruned" and points:
            parts.append(_path(*points[-1], "m-3-3l6 6m-6 0l6-6", _INK))
    if ships is not None:
        parts.append(_text(_LEFT, 24, f"thick: trial {ships}, {words.ship_mark(summary)}"))
    title = f"{summary.study}: validation curves; a cross ends a pruned trial"
    return frame.draw(title, "epoch", summary.metric, parts)


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


def _upright(frame: _Frame, x: float | None, name: str, dash: str = "1 3") -> str:
    """Return a labelled vertical line, '' if the cost is not known."""
    if x is None:
        return ""
    place = frame.at(x, 0)[0]
    turned = f'transform="rotate(-90 {place - 4:.1f} {_BOTTOM - 6})"'
    line = _line(place, _TOP, place, _BOTTOM, _INK, f'stroke-dasharray="{dash}"')
    return line + _text(place - 4, _BOTTOM - 6, name, more=turned)


def _path(x: float, y: float, steps: str, stroke: str, fill: str = "none") -> str:
    return f'<path d="M{x:.1f} {y:.1f}{steps}" fill="{fill}" stroke="{stroke}" stroke-width="2"/>'


def _line(x: float, y: float, to_x: float, to_y: float, colour: str, more: str = "") -> str:
    return (
        f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}" '
        f'stroke="{colour}" {more}/>'
    )


def _text(x: float, y: float, text: str, *, anchor: str = "start", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{html.escape(text)}</text>'
