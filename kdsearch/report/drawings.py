"""The front and the curves as SVG files, for papers and pull requests. No plotly, no browser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from kdsearch.report import box_figures, paper, words
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

_SHAPES: Mapping[str, Callable[[float, float], str]] = {
    "dominated": lambda x, y: f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{GREY}"/>',
    "front": lambda x, y: f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{BLUE}"/>',
    "mean over seeds": lambda x, y: paper.path(x, y, "m-5-5h10v10h-10z", BLUE),
    "control": lambda x, y: paper.path(x, y, "m0-6l6 6l-6 6l-6-6z", GREEN),
    "teacher": lambda x, y: paper.path(
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
    return {**found, **box_figures.of_summary(summary)}


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
    frame = paper.Frame(low=(below, low), high=(above, high), log=log)
    parts = [_upright(frame, getattr(e, axis), words.network(e.name)) for e in summary.baselines]
    parts.append(_upright(frame, limit, f"budget {words.amount(axis, limit)}", "6 4"))
    stairs = [frame.at(cost, val) for cost, val, _ in placed["front"]]
    steps = "".join(f"H{x:.1f}V{y:.1f}" for x, y in stairs[1:])
    if stairs:
        parts.append(paper.path(*stairs[0], steps, BLUE))
    for name, group in placed.items():
        for cost, val, mark in group:
            x, y = frame.at(cost, val)
            if mark.error and name != "to ship":
                ends = [frame.at(cost, val + sign * mark.error)[1] for sign in (-1, 1)]
                parts.append(paper.line(x, ends[0], x, ends[1], GREY))
            if mark.delay and axis == "latency_ms" and name != "to ship":
                sides = [frame.at(end, val)[0] for end in mark.delay]
                parts.append(paper.line(sides[0], y, sides[1], y, GREY))
            parts.append(_SHAPES[name](x, y))
    for i, name in enumerate(name for name, group in placed.items() if group):
        x = paper.LEFT + 8 + 110 * i
        parts.append(
            _SHAPES[name](x, 20)
            + paper.text(x + 14, 24, words.ship_mark(summary) if name == "to ship" else name)
        )
    title = words.AXES[axis].title + (" (log scale)" if log else "")
    return _drawn(frame, f"{summary.study}: the front", title, summary, parts)


def _curves(summary: Summary, records: Sequence[TrialRecord]) -> str:
    trained, ships = [record for record in records if record.curve], summary.to_ship()
    longest = max(2, *(len(record.curve) for record in trained))
    low, high = span(value for record in trained for value in record.curve)
    frame = paper.Frame(low=(1, low), high=(longest, high))
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
            parts.append(paper.path(*points[-1], "m-3-3l6 6m-6 0l6-6", paper.INK))
    if ships is not None:
        parts.append(
            paper.text(paper.LEFT, 24, f"thick: trial {ships}, {words.ship_mark(summary)}")
        )
    title = f"{summary.study}: validation curves; a cross ends a pruned trial"
    return _drawn(frame, title, "epoch", summary, parts)


def _drawn(
    frame: paper.Frame, title: str, x_title: str, summary: Summary, inside: Sequence[str]
) -> str:
    """Return a drawing of the validation metric."""
    metric = summary.metric
    return frame.draw(
        title,
        x_title=x_title,
        y_title=f"validation {metric.label}",
        is_percent=metric.is_percent,
        inside=inside,
    )


def _upright(frame: paper.Frame, x: float | None, name: str, dash: str = "1 3") -> str:
    """Return a labelled vertical line, '' if the cost is not known."""
    if x is None:
        return ""
    place = frame.at(x, 0)[0]
    turned = f'transform="rotate(-90 {place - 4:.1f} {paper.BOTTOM - 6})"'
    line = paper.line(
        place, paper.TOP, place, paper.BOTTOM, paper.INK, f'stroke-dasharray="{dash}"'
    )
    return line + paper.text(place - 4, paper.BOTTOM - 6, name, more=turned)
