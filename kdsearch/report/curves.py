"""The learning curves: one line a trial, the rungs, and a cross at the end of a pruned trial."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import plotly.graph_objects as go

from kdsearch.hpo.stopping import is_rung
from kdsearch.report import words
from kdsearch.report.axes import (
    GREY,
    ORANGE,
    PURPLE,
    VERMILLION,
    hover,
    layout,
    metric_axis,
    without_strays,
)
from kdsearch.report.marks import escape, finite
from kdsearch.spec import TrialRecord
from kdsearch.study.summary import Summary

_COLOURS = "31,131,196", "184,127,0", "11,147,106"
MAX_POINTS = 20_000  # 15 bytes each: 0.3 MB


def curves(summary: Summary, records: Iterable[TrialRecord]) -> go.Figure:
    """Return the validation metric after each epoch; the best trial is thick.

    A cross ends a pruned trial. Controls and refits have another colour. Rungs are marked if the
    study prunes. At least one record must hold a curve.
    """
    trained = [record for record in records if record.curve]
    best, metric = summary.to_ship(), summary.metric
    step, value = thinning(trained), hover(metric)
    longest = max(len(record.curve) for record in trained)
    groups = {
        "completed": [r for r in trained if r.state == "complete" and not r.kind],
        "not completed": [r for r in trained if r.state != "complete" and not r.kind],
        "controls, refits": [r for r in trained if r.kind],
    }
    alpha = max(0.4, min(0.8, 30 / len(trained)))  # in the colour, so that crossing lines add up
    traces = []
    for (name, group), colour in zip(groups.items(), _COLOURS, strict=True):
        if group:
            traces.append(_lines(group, step, name, f"rgba({colour},{alpha:.2f})", 1, value=value))
            traces.append(_legend_line(name, f"rgb({colour})"))
    if pruned := [record for record in trained if record.state == "pruned"]:
        traces.append(_pruned(pruned))
    for record in trained:
        if record.number == best:
            name = f"trial {best}, {words.ship_mark(summary)}"
            traces += [
                _lines([record], step, name, VERMILLION, 3, value=value),
                _legend_line(name, VERMILLION),
            ]
    ends = [record.curve[-1] for record in trained]  # the first epochs are far below
    marked = [
        epoch
        for epoch in range(1, longest)
        if summary.stopping in ("safe", "tight") and is_rung(epoch, longest)
    ]
    figure = go.Figure(data=traces)
    figure.update_layout(
        layout(
            showlegend=True,
            xaxis={
                "title": {"text": "epoch"},
                "range": [0.5, longest + 0.5],
                **({"dtick": 1} if longest <= 10 else {}),
            },
            yaxis=metric_axis(metric, [*without_strays(ends, ()), summary.teacher.val]),
            shapes=[*(_rung(epoch) for epoch in marked), _teacher(summary)],
        )
    )
    return figure


def thinning(records: Iterable[TrialRecord]) -> int:
    """Return n if the curves show every n-th epoch, 1 if they show all."""
    return max(1, -(-sum(len(record.curve) for record in records) // MAX_POINTS))


def _lines(
    records: Sequence[TrialRecord], step: int, name: str, colour: str, width: float, *, value: str
) -> go.Scatter:
    """Return one trace of many lines, separated by None."""
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
        hovertemplate=f"trial %{{customdata}}, epoch %{{x}}: {value}<extra></extra>",
        mode="markers" if single else "lines",
        line={"color": colour, "width": width},
        marker={"color": colour, "size": 6},
    )


def _pruned(records: Sequence[TrialRecord]) -> go.Scatter:
    return go.Scatter(
        name="pruned here",
        x=[len(record.curve) for record in records],
        y=[finite(record.curve[-1]) for record in records],
        customdata=[record.number for record in records],
        hovertext=[
            f"trial {record.number}, pruned<br>{escape(words.clipped(words.reason(record), 120))}"
            for record in records
        ],
        hoverinfo="text",
        mode="markers",
        marker={"symbol": "x", "size": 6, "color": ORANGE},
    )


def _legend_line(name: str, colour: str) -> go.Scatter:
    """Return an empty trace for the legend, where the lines themselves are too faint."""
    return go.Scatter(
        name=name,
        legendgroup=name,
        x=[None],
        y=[None],
        mode="lines",
        line={"color": colour, "width": 2},
    )


def _teacher(summary: Summary) -> dict[str, object]:
    """Return a line at the teacher's metric."""
    return {
        "type": "line",
        "layer": "above",  # the grid would cross the label
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": summary.teacher.val,
        "y1": summary.teacher.val,
        "line": {"dash": "dash", "width": 1, "color": PURPLE},
        "label": {"text": "teacher", "textposition": "end", "yanchor": "bottom"},
    }


def _rung(epoch: int) -> dict[str, object]:
    return {
        "type": "line",
        "layer": "above",  # the grid would hide it
        "yref": "paper",
        "x0": epoch,
        "x1": epoch,
        "y0": 0,
        "y1": 1,
        "line": {"dash": "dot", "width": 1, "color": GREY},
    }
