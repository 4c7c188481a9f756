"""The knobs of a network with parts left out. No torch: a search space reads them."""

from __future__ import annotations

from collections.abc import Mapping

from kdsearch.space import Choice, Float, Int

KNOBS: Mapping[str, Float | Int | Choice] = {
    "depth": Float(low=0.0, high=1.0, default=1.0),
    "drop": Choice(options=("last", "even", "least_change")),
    "cut": Int(low=0, high=5, default=0),
}
"""See `Shape` of `models/students/_library`."""
