"""What several loggers write of an ended trial."""

from __future__ import annotations

from kdsearch.spec import TrialRecord
from kdsearch.tasks.base import Metric


def final_numbers(record: TrialRecord, metric: Metric) -> dict[str, float]:
    """Return what is known of a trial's metric and costs, by `final/` and the name."""
    found = {metric.key: record.val, "seconds": record.seconds}
    if record.cost is not None:
        cost = record.cost
        found |= {"latency_ms": cost.latency_ms, "flops": cost.flops, "params": cost.params}
    return {f"final/{name}": float(value) for name, value in found.items() if value is not None}
