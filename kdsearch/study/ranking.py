"""Parameters ranked by their importance, as a report shows them. No torch, no Optuna."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

METRIC, COST = "metric", "cost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Importance:
    """A parameter's share of a ranking; low, high: 90 % of the shares in bootstrap resamples."""

    name: str
    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Parameters ranked by importance, the first the most important; their shares add up to 1.

    of: METRIC or COST. option: the family or method whose own parameters these are, '' for all
    parameters. trials: complete ones that it is from.
    """

    of: str
    option: str = ""
    trials: int
    values: tuple[Importance, ...]


def shares(found: Sequence[Ranking]) -> dict[str, float]:
    """Return each parameter's share of the importance for the metric."""
    common = (each for each in found if each.of == METRIC and not each.option)
    return {item.name: item.share for each in common for item in each.values}
