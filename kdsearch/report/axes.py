"""Colours and axes that the figures share.

Marks differ in shape as well as in colour (palette: Okabe and Ito, 2008), and each colour has a
contrast of 3 or more against both papers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import quantiles

from kdsearch.report import words
from kdsearch.report.marks import escape, finite
from kdsearch.spec import Budget
from kdsearch.tasks.base import Metric

BLUE, VERMILLION, GREEN, PURPLE, ORANGE = "#1F83C4", "#D55E00", "#0B936A", "#BC6094", "#B87F00"
GREY = "#7F8890"
_BEYOND = 4  # times the largest cost: a budget farther out would crush the points


def layout(**more: object) -> dict[str, object]:
    """Return the layout that all figures share."""
    return {
        "template": None,
        "margin": {"l": 60, "r": 16, "t": 16, "b": 56},
        "hovermode": "closest",
        "hoverlabel": {"align": "left"},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        **more,
    }


def shown_limit(budget: Budget, axis: str, costs: Iterable[float | None]) -> float | None:
    """Return the limit on a cost, None if it is too far from these costs to be drawn."""
    limit: float | None = getattr(budget, axis)
    known = [cost for cost in costs if cost is not None]
    if limit is None or not known or limit <= _BEYOND * max(known):
        return limit
    return None


def is_log(costs: Iterable[float | None]) -> bool:
    """Return True if these costs span more than a decade."""
    known = [cost for cost in costs if cost is not None]
    return bool(known) and min(known) > 0 and max(known) > 10 * min(known)


def cost_axis(axis: str, costs: Sequence[float | None]) -> dict[str, object]:
    """Return an axis for these costs, logarithmic if they span more than a decade."""
    known = [cost for cost in costs if cost is not None]
    log = is_log(known)
    return {
        "title": {"text": words.AXES[axis].title + (" (log scale)" if log else "")},
        "type": "log" if log else "linear",
        "tickformat": "~g" if axis == "latency_ms" else "~s",
        "autorange": True,
        # 1, 2, 5 in every decade; powers of ten alone if those would crowd
        **(
            {"dtick": "D2" if max(known) < 300 * min(known) else 1}
            if log
            else {"rangemode": "tozero"}
        ),
    }


def metric_axis(metric: Metric, values: Iterable[float | None]) -> dict[str, object]:
    """Return an axis around the values, at least a point to both sides."""
    low, high = span(values)
    return {
        "title": {"text": f"validation {escape(words.clipped(metric.label, 30))}", "standoff": 10},
        "tickformat": ".2~%" if metric.is_percent else "~r",
        "range": [low, high],
    }


def hover(metric: Metric) -> str:
    """Return the part of a hover template that writes the value of a point."""
    return "%{y:.2%}" if metric.is_percent else "%{y:.4f}"


def span(values: Iterable[float | None]) -> tuple[float, float]:
    """Return the range of an axis around the values."""
    known = [value for value in map(finite, values) if value is not None]
    low, high = min(known, default=0.0), max(known, default=1.0)
    margin = max(0.01, 0.06 * (high - low))
    return low - margin, high + margin


def without_strays(values: Iterable[float | None], always: Iterable[float | None]) -> list[float]:
    """Return the values without low outliers (Tukey's fences), and all of `always`."""
    known = [value for value in map(finite, values) if value is not None]
    kept = [value for value in map(finite, always) if value is not None]
    if len(known) < 4:
        return [*known, *kept]
    lower, _, upper = quantiles(known, n=4)
    fence = lower - 1.5 * max(upper - lower, 0.01)
    return [*(value for value in known if value >= fence), *kept]
