"""What several loggers write of an ended trial."""

from __future__ import annotations

from kdsearch.spec import TrialRecord


def final_numbers(record: TrialRecord) -> dict[str, float]:
    """Return what is known of a trial's accuracy and costs, by `final/` and the name."""
    found = {"accuracy": record.val, "seconds": record.seconds}
    if record.cost is not None:
        cost = record.cost
        found |= {"latency_ms": cost.latency_ms, "flops": cost.flops, "params": cost.params}
    return {f"final/{name}": float(value) for name, value in found.items() if value is not None}
