"""User attributes of trials for optuna-dashboard: plain values, which nothing here reads."""

from __future__ import annotations

from kdsearch.spec import Cost

SEARCH = "search"
_SCALES = {"mflops": ("flops", 1e6), "mparams": ("params", 1e6)}
_LATENCY = ("latency_ms", "latency_low_ms", "latency_high_ms")


def attributes(kind: str, state: str, cost: Cost | None) -> dict[str, float | str]:
    """Return the attributes of a trial that has ended; costs that are not known are left out.

    kind: of a trial outside the search. outcome: in our words, as Optuna has four states alone.
    """
    found: dict[str, float | str] = {"kind": kind or SEARCH, "outcome": state}
    for name, (field, scale) in _SCALES.items():
        if cost is not None and (value := getattr(cost, field)) is not None:
            found[name] = float(f"{value / scale:.4g}")
    for name in _LATENCY:
        if cost is not None and (value := getattr(cost, name)) is not None:
            found[name] = float(f"{value:.4g}")
    return found
