"""The table of all trials: its columns and cells. The script of the page turns cells into rows."""

from __future__ import annotations

from collections.abc import Iterable

from kdsearch.report import words
from kdsearch.spec import TrialRecord
from kdsearch.study.formatting import counted
from kdsearch.study.summary import Summary
from kdsearch.tasks.base import Metric

MAX_REASON = 160  # characters; trials.csv holds the whole reason
STATIC_ROWS = 100  # in the HTML itself, readable without JavaScript


def columns(metric: Metric) -> tuple[tuple[str, bool], ...]:
    """Return the title of each column, and whether it holds numbers."""
    return (
        ("trial", True),
        ("state", False),
        ("family", False),
        ("method", False),
        (words.heading("validation", metric.unit), True),
        ("latency, ms", True),
        ("MFLOPs", True),
        ("parameters", True),
        ("seconds", True),
        ("remark", False),
    )


def cells(summary: Summary, record: TrialRecord) -> list[str]:
    """Return the cells of a trial, '' for unknown values."""
    cost = record.cost
    return [
        str(record.number),
        record.state,
        words.family(record.params),
        words.method(record.params),
        "" if record.val is None else summary.metric.number(record.val),
        "" if cost is None or cost.latency_ms is None else f"{cost.latency_ms:.3f}",
        "" if cost is None or cost.flops is None else f"{cost.flops / 1e6:.3f}",
        "" if cost is None or cost.params is None else f"{cost.params:,}",
        f"{record.seconds:.1f}",
        _remark(summary, record),
    ]


def payload(summary: Summary, records: Iterable[TrialRecord]) -> dict[str, object]:
    """Return the data of the table for the script of the page."""
    return {
        "best": summary.to_ship(),
        "columns": [title for title, _ in columns(summary.metric)],
        "trials": [
            [
                *cells(summary, record),
                {
                    name: f"{value:.4g}" if isinstance(value, float) else str(value)
                    for name, value in record.params.items()
                },
            ]
            for record in records
        ],
    }


def _remark(summary: Summary, record: TrialRecord) -> str:
    parts = [words.ship_mark(summary)] if record.number == summary.to_ship() else []
    if record.kind:
        parts.append(record.outside())
    if record.reused_from is not None:
        parts.append(f"equals trial {record.reused_from}, not trained")
    if record.taught_epochs is not None:
        taught = counted(record.taught_epochs, "epoch")
        parts.append(f"distilled for {taught}, until it reached its teacher")
    if reason := words.reason(record):
        parts.append(words.clipped(reason, MAX_REASON))
    return "; ".join(parts)
