"""The training loss of a recipe: its terms, their adapters, schedules and weights.

These modules import `methods`, `models`, `tasks` and the modules at the top.
"""

from __future__ import annotations

from kdsearch.training.distiller.adapters import Side
from kdsearch.training.distiller.distiller import Distiller, LossWeights
from kdsearch.training.distiller.recipe import check, knobs_of, needed_features, temperature_knob

__all__ = [
    "Distiller",
    "LossWeights",
    "Side",
    "check",
    "knobs_of",
    "needed_features",
    "temperature_knob",
]
