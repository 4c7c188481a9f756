"""The figure of the front: the metric over each cost, with controls, teacher and baselines.

The page colours text, grid and paper, since it knows the theme. Every string from the study is
escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from kdsearch.report import words
from kdsearch.report.axes import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    VERMILLION,
    cost_axis,
    layout,
    metric_axis,
    shown_limit,
    span,
    without_strays,
)
from kdsearch.report.marks import Mark, Marks, escape, finite
from kdsearch.study.summary import Baseline, Summary

MAX_MARKS = 1_000  # of one kind off the front: each is an SVG node, and 1,000 overlap anyway
_STRIP = 0.07  # height of the band of rejected students


def known_axes(marks: Marks) -> list[str]:
    """Return the cost axes on which at least one student is known."""
    students = marks.students()
    return [axis for axis in words.AXES if any(mark.costs[axis] is not None for mark in students)]


def scatter(summary: Summary, marks: Marks, axis: str) -> go.Figure:
    """Return the metric over one cost; every axis has the same traces in the same order.

    The points of the front are joined on the axis that it optimises only. Low outliers lie outside
    the first view; `whole` is the range that shows them.
    """
    budget, front_axis = summary.budget, summary.budget.axis()
    strip = bool(marks.rejected)
    front = sorted(marks.front, key=lambda mark: (mark.costs[front_axis] or 0.0, mark.val or 0.0))
    traces = [
        _links(marks.links, axis),
        _marks(
            thinned(marks.dominated),
            axis,
            "dominated",
            _shape("circle", GREY, 7, opacity=0.8),
            bars=False,
        ),
        _marks(
            thinned(marks.pruned),
            axis,
            "pruned",
            _shape("triangle-down-open", ORANGE, 8),
            bars=False,
        ),
        _marks(
            thinned(marks.rejected),
            axis,
            "rejected",
            _shape("x-thin", GREY, 7, 1.5),
            strip=strip,
            bars=False,
        ),
        _marks(
            front,
            axis,
            "front",
            _shape("circle", BLUE, 9),
            joined=axis == front_axis,
            bars=not marks.refits,  # whose whiskers are over these
        ),
        _marks(marks.refits, axis, "mean over seeds", _shape("square-open", BLUE, 11, line=2)),
        _marks(marks.controls, axis, "control", _shape("diamond-open", GREEN, 12, line=2)),
        _marks([marks.teacher], axis, "teacher", _shape("star", PURPLE, 15)),
        _marks(
            marks.best,
            axis,
            words.ship_mark(summary),
            _shape("circle-open", VERMILLION, 19, 3),
            bars=False,
        ),
    ]
    figure = go.Figure(data=traces)
    costs = [mark.costs[axis] for mark in (*marks.students(), marks.teacher)]
    costs += [getattr(entry, axis) for entry in summary.baselines]
    limit = shown_limit(budget, axis, costs)
    base = _STRIP + 0.03 if strip else 0
    figure.update_layout(
        layout(
            xaxis={**cost_axis(axis, [*costs, limit]), "anchor": "y2" if strip else "y"},
            yaxis={**metric_axis(summary.metric, close_up(marks)), "domain": [base, 1]},
            shapes=[
                *_uprights(axis, summary.baselines, limit, base),
                *_forbidden(limit, costs, base),
                *_chance(summary.chance),
            ],
        )
    )
    if strip:
        figure.update_layout(yaxis2=_strip_axis())
    return figure


def close_up(marks: Marks) -> list[float]:
    """Return the values that set the first view: no low outliers and no pruned trials."""
    always = (*marks.front, *marks.refits, *marks.controls, marks.teacher)
    trained = [mark.val for mark in (*marks.dominated, *always)]
    return without_strays(trained, [mark.val for mark in always])


def whole(marks: Marks) -> tuple[float, float]:
    """Return the range that shows every mark."""
    return span(mark.val for mark in (*marks.students(), marks.teacher))


def thinned(marks: Sequence[Mark]) -> Sequence[Mark]:
    """Return at most MAX_MARKS of them, evenly spaced."""
    return marks[:: max(1, -(-len(marks) // MAX_MARKS))]


def views(figures: Mapping[str, go.Figure]) -> dict[str, dict[str, object]]:
    """Return, for every cost axis, the changes that make the figure show it."""
    return {
        axis: {
            "traces": {
                "x": [trace.x for trace in figure.data],
                "mode": [trace.mode for trace in figure.data],
                "visible": [trace.visible for trace in figure.data],
                # plotly draws bars without lengths as a tenth of the value
                "error_x.visible": [
                    axis == "latency_ms" and trace.error_x.array is not None
                    for trace in figure.data
                ],
            },
            "layout": {
                "xaxis": figure.layout.xaxis.to_plotly_json(),
                "shapes": [shape.to_plotly_json() for shape in figure.layout.shapes],
            },
        }
        for axis, figure in figures.items()
    }


def _shape(
    symbol: str, colour: str, size: int, line: float = 1, opacity: float = 1
) -> dict[str, object]:
    return {
        "symbol": symbol,
        "color": colour,
        "size": size,
        "opacity": opacity,
        "line": {"width": line, "color": colour},
    }


def _marks(
    marks: Sequence[Mark],
    axis: str,
    name: str,
    shape: Mapping[str, object],
    *,
    joined: bool = False,
    strip: bool = False,
    bars: bool = True,
) -> go.Scatter:
    x = [finite(mark.costs[axis]) for mark in marks]
    errors = [mark.error for mark in marks]
    look = {"thickness": 1, "width": 3, "color": shape["color"]}
    delays = _delays(marks)
    across = {**look, **delays, "visible": axis == "latency_ms"} if delays else None
    return go.Scatter(
        name=name,
        x=x,
        y=[0.0 if strip else mark.val for mark in marks],
        error_x=across if bars else None,
        error_y={**look, "array": errors} if any(errors) and bars else None,
        customdata=[mark.trial for mark in marks],
        hovertext=[mark.hover for mark in marks],
        hoverinfo="text",
        mode="lines+markers" if joined else "markers",
        line={"shape": "hv", "color": shape["color"], "width": 2},
        marker=shape,
        yaxis="y2" if strip else "y",
        visible=any(value is not None for value in x),
    )


def _delays(marks: Sequence[Mark]) -> dict[str, object]:
    """Return the lengths of the latency bars to both sides, empty without intervals."""
    if not any(mark.delay for mark in marks):
        return {}
    below, above = [], []
    for mark in marks:
        middle = mark.costs["latency_ms"] or 0.0
        low, high = mark.delay or (middle, middle)
        below.append(max(0.0, middle - low))
        above.append(max(0.0, high - middle))
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below}


def _links(links: Sequence[tuple[Mark, Mark]], axis: str) -> go.Scatter:
    x: list[float | None] = []
    y: list[float | None] = []
    for control, subject in links:
        x += [control.costs[axis], subject.costs[axis], None]
        y += [control.val, subject.val, None]
    return go.Scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": GREEN, "width": 1},
        hoverinfo="skip",
        showlegend=False,
        visible=bool(links),
    )


def _strip_axis() -> dict[str, object]:
    return {
        "domain": [0, _STRIP],
        "range": [-1, 1],
        "tickvals": [0],
        "ticktext": ["rejected"],
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
    }


def _uprights(
    axis: str, baselines: Sequence[Baseline], limit: float | None, base: float
) -> list[dict[str, object]]:
    priced = [entry for entry in baselines if getattr(entry, axis) is not None]
    priced.sort(key=lambda entry: getattr(entry, axis))
    lines = [_baseline_line(axis, entry, base, at_top=i % 2 == 1) for i, entry in enumerate(priced)]
    if limit is not None:
        label = {
            "text": f"budget {words.amount(axis, limit)}",
            "textposition": "middle",
            "yanchor": "top",
            "font": {"color": VERMILLION},
        }
        lines.append(_line(limit, 0, {"width": 2, "color": VERMILLION}, label))
    return lines


def _forbidden(
    limit: float | None, costs: Sequence[float | None], base: float
) -> list[dict[str, object]]:
    """Return the side of the budget where no student may be, none without a budget."""
    if limit is None:
        return []
    known = [cost for cost in costs if cost is not None]
    edge = 1.1 * max([limit, *known])
    return [
        {
            "type": "rect",
            "yref": "paper",
            "layer": "below",
            "x0": limit,
            "x1": edge,
            "y0": base,
            "y1": 1,
            "line": {"width": 0},
            "fillcolor": VERMILLION,
            "opacity": 0.08,
        }
    ]


def _chance(chance: float | None) -> list[dict[str, object]]:
    """Return a line at the metric of the best constant answer."""
    if chance is None:
        return []
    return [
        {
            "type": "line",
            "xref": "paper",
            "layer": "above",
            "x0": 0,
            "x1": 1,
            "y0": chance,
            "y1": chance,
            "line": {"dash": "dot", "width": 1},
            "label": {"text": "chance", "textposition": "start", "yanchor": "bottom"},
        }
    ]


def _baseline_line(axis: str, entry: Baseline, base: float, *, at_top: bool) -> dict[str, object]:
    """Return a line with its name at the foot or at the top, apart from its neighbours'."""
    label = {
        "text": escape(words.network(entry.name)),
        "textposition": "end" if at_top else "start",
        "xanchor": "right" if at_top else "left",
        "yanchor": "bottom",
    }
    return _line(getattr(entry, axis), base, {"dash": "dot", "width": 1}, label)


def _line(
    x: float, base: float, line: Mapping[str, object], label: Mapping[str, object]
) -> dict[str, object]:
    """Return an upright line above the marks: below them the grid would cross its label."""
    return {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "layer": "above",
        "x0": x,
        "x1": x,
        "y0": base,
        "y1": 1,
        "line": line,
        "label": label,
    }
