"""Figures of the search: best metric and hypervolume over trials, all choices at once, the clock.

Untrained and random networks lie far below; the axes leave them out as the front does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

import plotly.graph_objects as go

from kdsearch.hpo.convergence import hypervolumes
from kdsearch.report import words
from kdsearch.report.axes import (
    BLUE,
    GREY,
    ORANGE,
    PURPLE,
    VERMILLION,
    hover,
    is_log,
    layout,
    metric_axis,
    without_strays,
)
from kdsearch.report.marks import escape, finite
from kdsearch.report.slices import completed
from kdsearch.space import Value, is_number
from kdsearch.spec import TrialRecord
from kdsearch.study.summary import Summary
from kdsearch.study.timeline import Span

FEWEST_LINES = 10  # completed trials for parallel coordinates
MOST_LINES, MOST_AXES = 500, 8
_STEPS = 60  # points of the hypervolume
# Dark to bright: the quarter of the trials that is worst, to the best (viridis).
_QUARTERS = ("#7F8890", "#8A6FC0", "#1F83C4", "#D55E00")
_NAMES = ("lowest quarter", "second quarter", "third quarter", "best quarter")


def progress(summary: Summary, records: Sequence[TrialRecord]) -> go.Figure | None:
    """Return the best metric so far and the hypervolume over trials; None below two trials."""
    axis, metric = summary.budget.axis(), summary.metric
    done = [r for r in completed(records) if r.cost is not None and getattr(r.cost, axis)]
    if len(done) < 2:
        return None
    vals = [record.val or 0.0 for record in done]
    best = list(accumulate(vals, max))
    points = [(record.val or 0.0, float(getattr(record.cost, axis))) for record in done]
    counts = sorted({round(1 + i * (len(done) - 1) / (_STEPS - 1)) for i in range(_STEPS)})
    volumes = hypervolumes(points, counts, limit=getattr(summary.budget, axis))
    last = volumes[-1] or 1.0
    numbers = [record.number for record in done]
    figure = go.Figure(
        [
            go.Scatter(
                name="trial",
                x=numbers,
                y=vals,
                customdata=numbers,
                mode="markers",
                marker={"color": GREY, "size": 6},
                hovertemplate=f"trial %{{x}}: {hover(metric)}<extra></extra>",
            ),
            go.Scatter(
                name="best so far",
                x=numbers,
                y=best,
                customdata=numbers,
                mode="lines",
                line={"shape": "hv", "color": BLUE, "width": 3},
                hovertemplate=f"best up to trial %{{x}}: {hover(metric)}<extra></extra>",
            ),
            go.Scatter(
                name="hypervolume of the front",
                x=[numbers[count - 1] for count in counts],
                y=[volume / last for volume in volumes],
                yaxis="y2",
                mode="lines",
                line={"shape": "hv", "color": ORANGE, "width": 2, "dash": "dash"},
                hovertemplate="%{y:.1%} of the last hypervolume<extra></extra>",
            ),
        ]
    )
    figure.update_layout(
        layout(
            xaxis={"title": {"text": "trial"}, **({"dtick": 1} if len(numbers) <= 10 else {})},
            yaxis=metric_axis(metric, [*without_strays(vals, ()), *best[-1:]]),
            yaxis2={
                "title": {"text": "hypervolume, share of the last"},
                "overlaying": "y",
                "side": "right",
                "range": [0, 1.05],
                "tickvals": [0, 0.25, 0.5, 0.75, 1],
                "tickformat": ".0%",
                "showgrid": False,
            },
        )
    )
    return figure


def parallel(
    summary: Summary, records: Sequence[TrialRecord], importances: Mapping[str, float]
) -> go.Figure | None:
    """Return one line a completed trial across its choices, cost and metric; None for few trials.

    A parameter of each family, such as its width, has one axis for all of them. The best quarter is
    drawn last.
    """
    axis = summary.budget.axis()
    done = [r for r in completed(records) if r.cost is not None and getattr(r.cost, axis)]
    if len(done) < FEWEST_LINES:
        return None
    done = sorted(done, key=lambda r: r.val or 0.0)[-MOST_LINES:]
    rows = [_choices(record) for record in done]
    names = [name for name in rows[0] if all(name in row for row in rows)]
    names = [name for name in names if len({row[name] for row in rows}) > 1]
    names.sort(key=lambda name: -importances.get(name, 0.0))
    columns = {name: [row[name] for row in rows] for name in names[: MOST_AXES - 2]}
    cost, label = words.AXES[axis].name, summary.metric.label
    costs = [float(getattr(record.cost, axis)) for record in done]
    columns[cost] = list(costs)
    placed = {name: _placed(values) for name, values in columns.items()}
    ends = [words.amount(axis, find(costs)) for find in (max, min)]
    placed[cost] = placed[cost][0], ends
    scores = [record.val or 0.0 for record in done]
    kept = without_strays(scores, ())
    low, high = min(kept), max(kept)
    placed[label] = (
        [max(0.0, (score - low) / ((high - low) or 1.0)) for score in scores],
        [summary.metric.text(high), summary.metric.text(low)],
    )
    figure = go.Figure([_lines(i, done, list(placed.values())) for i in range(len(_QUARTERS))])
    figure.update_layout(
        layout(
            showlegend=True,
            margin={"l": 40, "r": 40, "t": 40, "b": 70},
            xaxis={
                "tickvals": list(range(len(placed))),
                "ticktext": [escape(words.clipped(name, 24)) for name in placed],
                "range": [-0.3, len(placed) - 0.7],
                "showgrid": True,
                "zeroline": False,
                "automargin": True,
            },
            yaxis={"visible": False, "range": [-0.1, 1.12]},
            annotations=[
                _end(column, text, is_top=is_top)
                for column, (_, ends) in enumerate(placed.values())
                for text, is_top in zip(ends, (True, False), strict=True)
            ],
        )
    )
    return figure


def for_both(figure: go.Figure) -> dict[str, object]:
    """Return `parallel` for the page: also with its layout for a phone."""
    return {**figure.to_plotly_json(), "narrow": in_rows(figure)}


def in_rows(figure: go.Figure) -> dict[str, object]:
    """Return the layout of `parallel` for a phone: each axis is a row, with its texts above it.

    The page swaps x and y of the lines.
    """
    names = figure.layout.xaxis.ticktext
    texts = [each.text for each in figure.layout.annotations]  # top and bottom of each axis
    places = ((0, "left"), (0.5, "center"), (1, "right"))
    return layout(
        showlegend=True,
        margin={"l": 12, "r": 12, "t": 16, "b": 8},
        xaxis={"visible": False, "range": [-0.02, 1.02]},
        yaxis={
            "tickvals": list(range(len(names))),
            "showticklabels": False,
            "range": [len(names) - 0.85, -0.7],
            "showgrid": True,
            "zeroline": False,
        },
        annotations=[
            {
                "x": x,
                "y": row,
                "xanchor": anchor,
                "yanchor": "bottom",
                "yshift": 3,
                "text": text,
                "showarrow": False,
                "font": {"size": 11},
            }
            for row, name in enumerate(names)
            for (x, anchor), text in zip(
                places, (texts[2 * row + 1], f"<b>{name}</b>", texts[2 * row]), strict=True
            )
        ],
    )


def timeline(records: Sequence[TrialRecord], spans: Sequence[Span]) -> go.Figure | None:
    """Return when each trial ran, one row for each that ran at once; None without a trial."""
    known = {record.number: record for record in records}
    shown = [span for span in spans if span.trial in known]
    if not shown:
        return None
    groups = (
        ("completed", BLUE, [s for s in shown if _kind(known[s.trial]) == "complete"]),
        ("not completed", ORANGE, [s for s in shown if _kind(known[s.trial]) == "other"]),
        ("controls, refits", PURPLE, [s for s in shown if _kind(known[s.trial]) == "after"]),
    )
    unit, scale = ("minutes", 60.0) if shown[-1].end >= 180 else ("seconds", 1.0)
    figure = go.Figure(
        [
            go.Bar(
                name=name,
                orientation="h",
                base=[span.begin / scale for span in group],
                x=[(span.end - span.begin) / scale for span in group],
                y=[span.lane + 1 for span in group],
                customdata=[span.trial for span in group],
                hovertemplate=f"trial %{{customdata}}: %{{x:.3~g}} {unit}<extra></extra>",
                marker={"color": colour, "line": {"width": 0.5, "color": GREY}},
            )
            for name, colour, group in groups
            if group
        ]
    )
    lanes = 1 + max(span.lane for span in shown)
    figure.update_layout(
        layout(
            barmode="overlay",
            showlegend=True,
            xaxis={"title": {"text": f"{unit} since the first trial"}, "rangemode": "tozero"},
            yaxis={
                "title": {"text": "trials at once"},
                "dtick": max(1, -(-lanes // 16)),
                "range": [lanes + 0.6, 0.4],
            },
            shapes=[_pause(span.begin / scale) for span in shown if span.after_pause],
        )
    )
    return figure


def _kind(record: TrialRecord) -> str:
    if record.kind:
        return "after"
    return "complete" if record.state == "complete" else "other"


def _pause(x: float) -> dict[str, object]:
    return {
        "type": "line",
        "yref": "paper",
        "x0": x,
        "x1": x,
        "y0": 0,
        "y1": 1,
        "line": {"dash": "dot", "width": 1, "color": VERMILLION},
    }


def _choices(record: TrialRecord) -> dict[str, Value]:
    """Return the parameters of a trial; those that a family or method owns by their last name."""
    found: dict[str, Value] = {}
    owners = (f"student.{words.family(record.params)}.", f"method.{words.method(record.params)}.")
    for name, value in record.params.items():
        owner = next((owner for owner in owners if name.startswith(owner)), None)
        section = name.partition(".")[0]
        found[name if owner is None else f"{section}.{name.removeprefix(owner)}"] = value
    return found


def _placed(values: Sequence[Value]) -> tuple[list[float], list[str]]:
    """Return values in [0, 1], and the texts at the top and at the bottom of their axis."""
    numbers = [float(value) for value in values if is_number(value, (int, float))]
    if len(numbers) < len(values):
        order = sorted(set(map(str, values)))
        return [order.index(str(v)) / (len(order) - 1) for v in values], [order[-1], order[0]]
    scaled = [math.log(value) for value in numbers] if is_log(numbers) else numbers
    low, high = min(scaled), max(scaled)
    ends = [words.scaled(max(numbers)), words.scaled(min(numbers))]
    return [(value - low) / ((high - low) or 1.0) for value in scaled], ends


def _lines(
    quarter: int,
    records: Sequence[TrialRecord],
    columns: Sequence[tuple[Sequence[float], Sequence[str]]],
) -> go.Scatter:
    """Return the lines of one quarter of the trials, which are sorted by their metric."""
    x: list[float | None] = []
    y: list[float | None] = []
    trials: list[int | None] = []
    size = len(records) / len(_QUARTERS)
    for row in range(round(quarter * size), round((quarter + 1) * size)):
        x += [*range(len(columns)), None]
        y += [*(finite(round(places[row], 3)) for places, _ in columns), None]
        trials += [*(records[row].number for _ in columns), None]
    return go.Scatter(
        name=_NAMES[quarter],
        x=x,
        y=y,
        customdata=trials,
        hovertemplate="trial %{customdata}<extra></extra>",
        mode="lines",
        line={"color": _QUARTERS[quarter], "width": 1 if quarter < len(_QUARTERS) - 1 else 2},
        opacity=0.8 if quarter < len(_QUARTERS) - 1 else 1,
    )


def _end(column: int, text: str, *, is_top: bool) -> dict[str, object]:
    return {
        "x": column,
        "y": 1.02 if is_top else -0.02,
        "yanchor": "bottom" if is_top else "top",
        "text": escape(words.clipped(text, 16)),
        "showarrow": False,
        "font": {"size": 11},
    }
