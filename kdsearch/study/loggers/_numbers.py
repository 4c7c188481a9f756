"""The numbers that several loggers write of an epoch and of an ended trial."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kdsearch.spec import TrialRecord
from kdsearch.tasks.base import Metric

if TYPE_CHECKING:
    from kdsearch.training.trainer import Epoch


def epoch_numbers(epoch: Epoch, metric: Metric) -> dict[str, float]:
    """Return the metric, learning rate and losses of an epoch, by name."""
    losses = {f"loss/{name}": value for name, value in epoch.losses.items()}
    return {metric.key: epoch.val, "lr": epoch.lr, **losses}


def final_numbers(record: TrialRecord, metric: Metric) -> dict[str, float]:
    """Return what is known of a trial's metric and costs, by `final/` and the name."""
    found = {metric.key: record.val, "seconds": record.seconds}
    if record.cost is not None:
        cost = record.cost
        found |= {"latency_ms": cost.latency_ms, "flops": cost.flops, "params": cost.params}
    return {f"final/{name}": float(value) for name, value in found.items() if value is not None}
