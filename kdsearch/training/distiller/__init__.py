"""From a recipe to a training loss: terms, adapters, schedules and weights in one module.

These modules import `methods`, `models`, `tasks` and the modules at the top.
"""

from __future__ import annotations

from kdsearch.training.distiller.adapters import Side
from kdsearch.training.distiller.distiller import Distiller, Pace
from kdsearch.training.distiller.recipe import check, knobs_of, parts_heard, temperature_knob

__all__ = ["Distiller", "Pace", "Side", "check", "knobs_of", "parts_heard", "temperature_knob"]
