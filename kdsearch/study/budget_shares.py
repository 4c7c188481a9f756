"""Limits of a budget as shares of the teacher's own cost, as `--budget-ms 0.5x`. No torch.

A share becomes a number once the teacher is priced. `study.yaml` keeps both: the number is the
budget, and a resumed study accepts the same share again.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from math import inf, nextafter

from kdsearch.errors import SpecError
from kdsearch.spec import Budget

# Field of StudyConfig: its cost, how many of the field's units one unit of the cost is, its unit.
LIMITS = {
    "budget_ms": ("latency_ms", 1.0, "ms"),
    "budget_mflops": ("flops", 1e-6, "MFLOPs"),
    "budget_mparams": ("params", 1e-6, "M parameters"),
}


@dataclass(frozen=True, slots=True)
class Share:
    """A limit as a share of the teacher's cost."""

    of_teacher: float

    def __repr__(self) -> str:
        """Return it as the user types it, `0.5x`."""
        return f"{self.of_teacher:g}x"


def read_limit(text: str, name: str) -> float | Share:
    """Read a number, or a share as `0.5x`. Raises SpecError."""
    number, is_share = text.strip().removesuffix("x"), text.strip().endswith("x")
    with suppress(ValueError):
        value = float(number)
        if not is_share:
            return value
        if 0 < value < inf:
            return Share(value)
    raise SpecError(
        f"{name} {text!r}: expected a number above 0, or a share of the teacher's own as 0.5x"
    )


def budget_fields(budget: Budget | None) -> dict[str, float]:
    """Return the fields of StudyConfig for a budget; without one, none."""
    if budget is None:
        return {}
    limits = {
        "budget_ms": budget.latency_ms,
        "budget_mflops": _mega(budget.flops),
        "budget_mparams": _mega(budget.params),
    }
    return {name: limit for name, limit in limits.items() if limit is not None}


def _mega(limit: float | None) -> float | None:
    """Return a limit in millions that is no lower when it is multiplied again."""
    if limit is None or limit / 1e6 * 1e6 >= limit:
        return None if limit is None else limit / 1e6
    return nextafter(limit / 1e6, inf)
