"""User attributes of trials for optuna-dashboard: plain values, which nothing here reads."""

from __future__ import annotations

from kdsearch.spec import Cost
from kdsearch.study.summary import LATENCY

SEARCH = "search"
_COSTS = {  # field of Cost, and how many of its units are one of the attribute's
    "mflops": ("flops", 1e6),
    "mparams": ("params", 1e6),
    **{name: (name, 1.0) for name in LATENCY},
}


def attributes(kind: str, state: str, cost: Cost | None) -> dict[str, float | str]:
    """Return the attributes of a trial that has ended; costs that are not known are left out.

    kind: of a trial outside the search. outcome: in our words, as Optuna has four states alone.
    """
    found: dict[str, float | str] = {"kind": kind or SEARCH, "outcome": state}
    for name, (field, scale) in _COSTS.items():
        if (value := getattr(cost, field, None)) is not None:
            found[name] = float(f"{value / scale:.4g}")
    return found
