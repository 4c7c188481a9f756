"""Slices: the metric of completed trials over one parameter at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import plotly.graph_objects as go

from kdsearch.report import words
from kdsearch.report.axes import (
    BLUE,
    VERMILLION,
    hover,
    is_log,
    layout,
    metric_axis,
    without_strays,
)
from kdsearch.report.marks import escape, finite
from kdsearch.spec import TrialRecord
from kdsearch.study.summary import Summary
from kdsearch.tasks.base import Metric

MOST = 4
MAX_POINTS = 1_000
FEW = 10  # trials of an option below which it has no box
_ALWAYS = ("student.family", "method.name")  # if importances are unknown


def chosen(importances: Mapping[str, float], records: Sequence[TrialRecord]) -> list[str]:
    """Return the most important parameters that differ between completed trials, at most MOST."""
    ranked = sorted(importances, key=lambda name: -importances[name]) or list(_ALWAYS)
    done = completed(records)
    return [name for name in ranked if len({r.params.get(name) for r in done} - {None}) > 1][:MOST]


def completed(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the completed trials of the search with a finite score."""
    return [
        record
        for record in records
        if record.state == "complete" and not record.kind and finite(record.val)
    ]


def slice_of(summary: Summary, records: Sequence[TrialRecord], name: str) -> go.Figure:
    """Return the metric over one parameter: points for numbers, boxes for options of many."""
    best, metric = summary.to_ship(), summary.metric
    done = [record for record in completed(records) if name in record.params]
    values = [record.params[name] for record in done]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    is_number = len(numbers) == len(values) and len(set(numbers)) > 4
    scores = [record.val for record in done]
    many = max(1, -(-len(done) // MAX_POINTS))
    xaxis: dict[str, object] = {"title": {"text": escape(name)}}
    if is_number:
        xaxis |= {"type": "log", "dtick": "D2"} if is_log(numbers) else {"type": "linear"}
        traces = [_points(done[::many], values[::many], metric)]
    else:
        order = sorted(set(numbers)) if len(numbers) == len(values) else None
        xaxis |= {"type": "category", "automargin": True}
        xaxis |= {"categoryarray": [str(v) for v in order]} if order else {}
        values = [escape(str(value)) for value in values]
        largest = max(Counter(values).values(), default=0)
        traces = (
            [_points(done, values, metric)]
            if largest < FEW
            else [_boxes(values, scores, all_points=len(done) <= 200)]
        )
    traces += [_best(r, v, summary) for r, v in zip(done, values, strict=True) if r.number == best]
    figure = go.Figure(data=traces)
    figure.update_layout(
        layout(xaxis=xaxis, yaxis=metric_axis(metric, without_strays(scores, ())), showlegend=False)
    )
    return figure


def _points(records: Sequence[TrialRecord], values: Sequence[object], metric: Metric) -> go.Scatter:
    return go.Scatter(
        x=values,
        y=[record.val for record in records],
        customdata=[record.number for record in records],
        hovertemplate=f"trial %{{customdata}}<br>%{{x}}: {hover(metric)}<extra></extra>",
        mode="markers",
        marker={"color": BLUE, "size": 6, "opacity": 0.7},
    )


def _boxes(values: Sequence[object], scores: Sequence[object], *, all_points: bool) -> go.Box:
    return go.Box(
        x=values,
        y=scores,
        boxpoints="all" if all_points else "outliers",
        pointpos=0,
        jitter=0.5,
        line={"color": BLUE, "width": 1},
        fillcolor="rgba(0,0,0,0)",
        marker={"color": BLUE, "size": 4, "opacity": 0.7},
        hoverinfo="y",
    )


def _best(record: TrialRecord, value: object, summary: Summary) -> go.Scatter:
    mark, metric = words.ship_mark(summary), summary.metric
    return go.Scatter(
        x=[value],
        y=[record.val],
        customdata=[record.number],
        hovertemplate=f"trial %{{customdata}}, {mark}: {hover(metric)}<extra></extra>",
        mode="markers",
        marker={
            "symbol": "circle-open",
            "size": 14,
            "color": VERMILLION,
            "line": {"width": 3, "color": VERMILLION},
        },
    )
