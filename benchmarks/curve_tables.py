"""Tables of learning curves: measured ones, ones made by their statistics, and harder ones.

A made table is drawn along a chain: what an epoch gives is a polynomial of log cost and of the
accuracies at the two epochs seen before, plus a residual whose size grows or shrinks with what is
expected and whose quantiles are kept, so that failures stay as rare and as deep. `chain_of` fits
that to measured curves, one chain a schedule; `curve_statistics.json` holds the figures of 165
students, which `python -m benchmarks stopping_tables --curves FILE --statistics TO` writes anew.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydantic
from pydantic.dataclasses import dataclass

from kdsearch.hpo.stopping import Curve

SEEN = (1, 2, 4, 8, 12, 16)
EPOCHS, IMAGES = SEEN[-1], 2000
STATISTICS = Path(__file__).with_name("curve_statistics.json")
_LEVELS = (0.0, 0.02, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.98, 1.0)
_LEAST = 0.003  # added to a residual's size before its logarithm is taken
Columns = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one epoch gives. scale: log size of a residual, its slope, and where it is zero."""

    slopes: tuple[float, ...]
    scale: tuple[float, float, float]
    residuals: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Students of one schedule: quantiles of log cost, then a step for each epoch in SEEN."""

    log_costs: tuple[float, ...]
    steps: tuple[Step, ...]


def chain_of(table: Sequence[Curve]) -> Chain:
    """Fit a chain to the curves of one schedule, by least squares."""
    rows = columns(table)
    steps = []
    for k in range(1, len(SEEN) + 1):
        inputs = _inputs(rows[:, :k])
        slopes = np.linalg.lstsq(inputs, rows[:, k], rcond=None)[0]
        mean = inputs @ slopes
        residual = rows[:, k] - mean
        sized = np.column_stack([np.ones(len(rows)), mean - mean.mean()])
        size = np.linalg.lstsq(sized, np.log(np.abs(residual) + _LEAST), rcond=None)[0]
        free = len(rows) - inputs.shape[1]
        even = residual / np.exp(sized @ size) * math.sqrt(len(rows) / free)
        steps.append(
            Step(
                slopes=_rounded(slopes),
                scale=(
                    round(float(size[0]), 4),
                    round(float(size[1]), 4),
                    round(float(mean.mean()), 4),
                ),
                residuals=_rounded(np.quantile(even, _LEVELS)),
            )
        )
    return Chain(log_costs=_rounded(np.quantile(rows[:, 0], _LEVELS)), steps=tuple(steps))


def made_table(chains: Mapping[str, Chain], *, students: int, seed: int) -> list[Curve]:
    """Return so many made curves of each schedule, as accuracies on IMAGES images.

    At the epochs between those of SEEN a curve stays as it was, as in a measured table.
    """
    chance = np.random.default_rng(seed)
    table = []
    for schedule, chain in chains.items():
        rows = np.interp(chance.random(students), _LEVELS, chain.log_costs)[:, None]
        for step in chain.steps:
            mean = _inputs(rows) @ np.array(step.slopes)
            level, slope, middle = step.scale
            size = np.exp(level + slope * (mean - middle))
            drawn = mean + size * np.interp(chance.random(students), _LEVELS, step.residuals)
            rows = np.column_stack([rows, np.clip(np.round(drawn * IMAGES) / IMAGES, 0, 1)])
        for log_cost, *values in rows.tolist():
            whole = np.repeat(values, np.diff([*SEEN, EPOCHS + 1])).tolist()
            cost = math.exp(log_cost)
            table.append(Curve(values=tuple(whole), epochs=EPOCHS, cost=cost, schedule=schedule))
    return table


def stress_table(*, students: int, seed: int) -> list[Curve]:
    """Return curves under one schedule that are harder to foretell than measured ones.

    A student's end grows with its cost and hangs on its recipe; curves have their own speed and
    cross. Accuracies at epochs 2, 4 and 8 rank students as their ends do by .75, .87 and .95.
    """
    chance = np.random.default_rng(seed)
    epoch = np.arange(1, EPOCHS + 1)
    table = []
    for cost in np.exp(chance.uniform(math.log(2e4), math.log(5e6), students)):
        end = 0.36 + 0.022 * math.log(cost / 2e4) - chance.gamma(1.5, 0.03)
        left = epoch ** -chance.normal(0.6, 0.35)
        true = 0.1 + (end - 0.1) * (1 - (left - left[-1]))
        if chance.random() < 0.02:
            true = np.full(EPOCHS, 0.15)
        # The images are the same after each epoch, so most of their noise is too.
        noise = chance.normal(0, 0.010) + chance.normal(0, 0.005, EPOCHS)
        values = np.clip(true + noise, 0, 1)
        table.append(Curve(values=tuple(values.tolist()), epochs=EPOCHS, cost=float(cost)))
    return table


def measured_table(file: Path) -> list[Curve]:
    """Return the curves of a file's first seeds; what was not evaluated is as it was before.

    file: gzipped JSON of `records` with `seed`, `schedule`, `macs` and `ema_acc`.
    """
    with gzip.open(file, "rt", encoding="utf-8") as text:
        records = [r for r in json.load(text)["records"] if r["seed"] == 0]
    return [
        Curve(
            values=tuple(accumulate(r["ema_acc"], lambda old, new: old if new is None else new)),
            epochs=len(r["ema_acc"]),
            cost=float(r["macs"]),
            schedule=r["schedule"],
        )
        for r in records
    ]


def statistics_of(table: Sequence[Curve]) -> dict[str, Chain]:
    """Return a chain for each schedule."""
    names = sorted({curve.schedule for curve in table})
    return {name: chain_of([c for c in table if c.schedule == name]) for name in names}


_FILE = pydantic.TypeAdapter(dict[str, Chain])


def read_statistics(file: Path = STATISTICS) -> dict[str, Chain]:
    """Return the chains that a file holds."""
    return _FILE.validate_json(file.read_bytes())


def write_statistics(chains: dict[str, Chain], file: Path) -> None:
    """Write chains where `read_statistics` finds them again."""
    file.write_bytes(_FILE.dump_json(chains) + b"\n")


def columns(table: Sequence[Curve]) -> Columns:
    """Return a row for each curve: log cost, then the accuracies at the epochs of SEEN."""
    return np.array([[math.log(c.cost), *(c.values[n - 1] for n in SEEN)] for c in table])


def _inputs(rows: Columns) -> Columns:
    """Return what the next epoch is a sum of: 1, log cost, the last accuracy, the one before."""
    log_cost = rows[:, 0] - 13.0  # about the middle of the measured
    inputs = [np.ones(len(rows)), log_cost, log_cost**2]
    if rows.shape[1] > 1:
        inputs += [rows[:, -1], rows[:, -1] ** 2]
    if rows.shape[1] > 2:
        inputs.append(rows[:, -2])
    return np.column_stack(inputs)


def _rounded(values: npt.NDArray[np.floating[Any]]) -> tuple[float, ...]:
    return tuple(round(float(value), 4) for value in values)
