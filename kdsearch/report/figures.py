"""The plotly figures of the report, readable on light and dark paper and by the colour-blind.

Text, grid and paper are coloured by the page, which knows the theme; marks differ in shape as
well as in colour (palette: Okabe and Ito, 2008). Every string from the study is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import plotly.graph_objects as go

from kdsearch.report import words
from kdsearch.report.marks import Mark, Marks, escape, finite
from kdsearch.spec import Budget, TrialRecord

BLUE, VERMILLION, GREEN, PURPLE, ORANGE = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00"
GREY = "#7F8890"
MAX_CURVE_POINTS = 20_000  # 15 bytes each: 0.3 MB
_STRIP = 0.07  # height of the band of infeasible students


def known_axes(marks: Marks) -> list[str]:
    """Return the costs that at least one student has a number for."""
    students = marks.students()
    return [axis for axis in words.AXES if any(mark.costs[axis] is not None for mark in students)]


def scatter(marks: Marks, *, axis: str, front_axis: str, budget: Budget, metric: str) -> go.Figure:
    """Return accuracy against one cost; the same traces in the same order on every axis.

    `front_axis` is the cost that the front is about: only there are its points joined.
    """
    strip = bool(marks.infeasible)
    front = sorted(marks.front, key=lambda mark: (mark.costs[front_axis] or 0.0, mark.val or 0.0))
    traces = [
        _links(marks.links, axis),
        _marks(marks.dominated, axis, "dominated", _shape("circle", GREY, 7, opacity=0.65)),
        _marks(marks.stopped, axis, "stopped early", _shape("triangle-down-open", ORANGE, 8)),
        _marks(marks.infeasible, axis, "over budget", _shape("x-thin", GREY, 7, 1.5), strip=strip),
        _marks(front, axis, "front", _shape("circle", BLUE, 9), joined=axis == front_axis),
        _marks(marks.controls, axis, "control", _shape("diamond-open", GREEN, 12, line=2)),
        _marks([marks.teacher], axis, "teacher", _shape("star", PURPLE, 15)),
        _marks(marks.best, axis, "to ship", _shape("circle-open", VERMILLION, 19, 3)),
    ]
    figure = go.Figure(data=traces)
    limit = getattr(budget, axis)
    everything = [mark.costs[axis] for mark in (*marks.students(), marks.teacher)]
    figure.update_layout(
        template=None,
        margin={"l": 60, "r": 16, "t": 16, "b": 56},
        hovermode="closest",
        hoverlabel={"align": "left"},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        xaxis={**_cost_axis(axis, [*everything, limit]), "anchor": "y2" if strip else "y"},
        yaxis={
            **_metric_axis(metric, [mark.val for mark in (*marks.students(), marks.teacher)]),
            "domain": [_STRIP + 0.03 if strip else 0, 1],
        },
        shapes=[] if limit is None else [_budget_line(axis, limit)],
    )
    if strip:
        figure.update_layout(yaxis2=_strip_axis())
    return figure


def views(figures: Mapping[str, go.Figure]) -> dict[str, dict[str, object]]:
    """Return, for every cost axis, what has to change for the figure to show it."""
    return {
        axis: {
            "traces": {
                "x": [trace.x for trace in figure.data],
                "mode": [trace.mode for trace in figure.data],
                "visible": [trace.visible for trace in figure.data],
            },
            "layout": {
                "xaxis": figure.layout.xaxis.to_plotly_json(),
                "shapes": [shape.to_plotly_json() for shape in figure.layout.shapes],
            },
        }
        for axis, figure in figures.items()
    }


def curves(records: Iterable[TrialRecord], *, best: int | None, metric: str) -> go.Figure:
    """Return one line a trial, of validation accuracy after each epoch; the best is thick.

    At least one record must hold a curve.
    """
    told = [record for record in records if record.curve]
    step = _step(told)
    longest = max(len(record.curve) for record in told)
    groups = {
        "completed": [record for record in told if record.state == "complete"],
        "not completed": [record for record in told if record.state != "complete"],
    }
    alpha = max(0.08, min(0.7, 8 / len(told)))  # in the colour, so that crossing lines add up
    traces = []
    for (name, group), colour in zip(groups.items(), ("0,114,178", "230,159,0"), strict=True):
        if group:
            traces.append(_lines(group, step, name, f"rgba({colour},{alpha:.2f})", 1))
            traces.append(_legend_line(name, f"rgb({colour})"))
    for record in told:
        if record.number == best:
            name = f"trial {best}, to ship"
            traces += [_lines([record], step, name, VERMILLION, 3), _legend_line(name, VERMILLION)]
    figure = go.Figure(data=traces)
    figure.update_layout(
        template=None,
        margin={"l": 60, "r": 16, "t": 16, "b": 56},
        hovermode="closest",
        showlegend=True,
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        xaxis={
            "title": {"text": "epoch"},
            "range": [0.5, longest + 0.5],
            **({"dtick": 1} if longest <= 10 else {}),
        },
        yaxis=_metric_axis(metric, (value for record in told for value in record.curve)),
    )
    return figure


def thinning(records: Iterable[TrialRecord]) -> int:
    """Return n where the curves show every n-th epoch, 1 where they show all."""
    return _step([record for record in records if record.curve])


def _step(records: Sequence[TrialRecord]) -> int:
    return max(1, -(-sum(len(record.curve) for record in records) // MAX_CURVE_POINTS))


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
) -> go.Scatter:
    x = [finite(mark.costs[axis]) for mark in marks]
    return go.Scatter(
        name=name,
        x=x,
        y=[0.0 if strip else mark.val for mark in marks],
        hovertext=[mark.hover for mark in marks],
        hoverinfo="text",
        mode="lines+markers" if joined else "markers",
        line={"shape": "hv", "color": shape["color"], "width": 2},
        marker=shape,
        yaxis="y2" if strip else "y",
        visible=any(value is not None for value in x),
    )


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


def _cost_axis(axis: str, costs: Iterable[float | None]) -> dict[str, object]:
    known = [cost for cost in costs if cost is not None]
    log = bool(known) and min(known) > 0 and max(known) > 10 * min(known)
    return {
        "title": {"text": words.AXES[axis].title + (" (log scale)" if log else "")},
        "type": "log" if log else "linear",
        "tickformat": "~g" if axis == "latency_ms" else "~s",
        "autorange": True,
        # 1, 2, 5 in every decade; powers of ten alone where those would crowd
        **(
            {"dtick": "D2" if max(known) < 300 * min(known) else 1}
            if log
            else {"rangemode": "tozero"}
        ),
    }


def _metric_axis(metric: str, values: Iterable[float | None]) -> dict[str, object]:
    """Return an axis around the values, never closer than a point around a single one."""
    known = [value for value in map(finite, values) if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    margin = max(0.01, 0.06 * (high - low))
    return {
        "title": {"text": f"validation {escape(words.clipped(metric, 30))}", "standoff": 10},
        "tickformat": ".2~%",
        "range": [low - margin, high + margin],
    }


def _strip_axis() -> dict[str, object]:
    return {
        "domain": [0, _STRIP],
        "range": [-1, 1],
        "tickvals": [0],
        "ticktext": ["untrained"],
        "showgrid": False,
        "zeroline": False,
        "fixedrange": True,
    }


def _budget_line(axis: str, limit: float) -> dict[str, object]:
    return {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "x0": limit,
        "x1": limit,
        "y0": 0,
        "y1": 1,
        "line": {"dash": "dash", "width": 1.5},
        "label": {
            "text": f"budget {words.amount(axis, limit)}",
            "textposition": "middle",
            "yanchor": "bottom",
        },
    }


def _lines(
    records: Sequence[TrialRecord],
    step: int,
    name: str,
    colour: str,
    width: float,
) -> go.Scatter:
    """Return one trace of many lines: they part where a value is None."""
    x: list[int | None] = []
    y: list[float | None] = []
    trials: list[int | None] = []
    for record in records:
        last = len(record.curve) - 1
        epochs = [i for i in range(last + 1) if i % step == 0 or i == last]
        x += [*(i + 1 for i in epochs), None]
        values = [finite(record.curve[i]) for i in epochs]
        y += [*(None if value is None else round(value, 4) for value in values), None]
        trials += [*(record.number for _ in epochs), None]
    single = all(len(record.curve) == 1 for record in records)
    return go.Scatter(
        legendgroup=name,
        showlegend=False,
        x=x,
        y=y,
        customdata=trials,
        hovertemplate="trial %{customdata}, epoch %{x}: %{y:.2%}<extra></extra>",
        mode="markers" if single else "lines",
        line={"color": colour, "width": width},
        marker={"color": colour, "size": 6},
    )


def _legend_line(name: str, colour: str) -> go.Scatter:
    """Return an empty trace that stands in the legend for lines too faint to be seen there."""
    return go.Scatter(
        name=name,
        legendgroup=name,
        x=[None],
        y=[None],
        mode="lines",
        line={"color": colour, "width": 2},
    )
