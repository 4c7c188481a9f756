"""What stopping saves and what it costs: learning curves of whole studies, replayed in any order.

A table holds the curve of every student to its end, so what a stopped study kept stands beside what
all of them would have given. `made` is five tables whose statistics are those of measured curves;
they were fixed before the rule was, which was not chosen on them. `stress` is harder than what was
measured, reported and under no bar. `--curves FILE` replays measured ones as well.

Hypervolume is counted from the lower quartile of the ends to the dearest student. Beside the rule:
no stopping, and ASHA at eta 4, which sees the accuracy alone. Means over shuffles.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from benchmarks.curve_tables import (
    IMAGES,
    made_table,
    measured_table,
    read_statistics,
    statistics_of,
    stress_table,
    write_statistics,
)
from kdsearch.hpo import pareto
from kdsearch.hpo.stopping import Curve, CurvePruner, is_rung

MADE, STUDENTS, QUARTER = 5, 83, 0.25  # tables; students of each of two schedules
Stop: TypeAlias = Callable[[Curve, Sequence[Curve]], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Of a replay, as fractions of what the whole table holds or asks.

    best_stopped: of the most accurate within the cheapest quarter, half and all.
    """

    epochs: float
    linear: float
    log: float
    front_lost: float
    best_stopped: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A field of Kept in one case, at least or at most so much."""

    case: str
    name: str
    limit: float
    is_floor: bool = False

    def __str__(self) -> str:
        return f"{self.case}, {self.name} {'>=' if self.is_floor else '<='} {self.limit:g}"

    def is_met(self, kept: Kept) -> bool:
        """Return whether a case's figures keep the bar."""
        value = getattr(kept, self.name)
        return bool(value >= self.limit if self.is_floor else value <= self.limit)


BARS = (
    Bar(case="safe", name="epochs", limit=0.5),
    Bar(case="safe", name="linear", limit=0.99, is_floor=True),
    Bar(case="safe", name="log", limit=0.99, is_floor=True),
    Bar(case="safe", name="front_lost", limit=0.1),
    Bar(case="safe", name="best_stopped", limit=0.05),
    Bar(case="tight, a quarter", name="log", limit=0.93, is_floor=True),
)


def by_rule(mode: str) -> Stop:
    """Return the rule of kdsearch."""
    pruner = CurvePruner(mode=mode, images=IMAGES)
    return lambda trial, others: pruner.prune(trial, others).should_prune


def asha(trial: Curve, others: Sequence[Curve], *, eta: int = 4) -> bool:
    """Stop whoever is not in the best 1/eta of those that came as far, at epochs 1, 4, ..."""
    epoch = len(trial.values)
    peers = [o.values[epoch - 1] for o in others if len(o.values) >= epoch]
    ahead = sum(value > trial.values[-1] for value in peers)
    return epoch.bit_length() % 2 == 1 and ahead >= max(1, (len(peers) + 1) / eta)


def replay(table: Sequence[Curve], order: Sequence[int], stop: Stop, *, share: float = 1.0) -> Kept:
    """Run the students in this order, until that share of all epochs is spent."""
    others: list[Curve] = []
    complete, stopped, spent = [], set(), 0
    total = sum(curve.epochs for curve in table)
    for i in order:
        if spent >= share * total:
            break
        curve = table[i]
        rungs = (epoch for epoch in range(1, curve.epochs) if is_rung(epoch, curve.epochs))
        seen = (replace(curve, values=curve.values[:epoch]) for epoch in rungs)
        ended = next((trial for trial in seen if stop(trial, others)), None)
        if ended is None:
            complete.append(i)
            ended = replace(curve, is_complete=True)
        else:
            stopped.add(i)
        spent += len(ended.values)
        others.append(ended)
    return Kept(
        epochs=spent / total,
        linear=_volume(table, complete) / _volume(table, range(len(table))),
        log=_volume(table, complete, log=True) / _volume(table, range(len(table)), log=True),
        front_lost=float(np.mean([i not in complete for i in _front(table)])),
        best_stopped=float(np.mean([best in stopped for best in _bests(table)])),
    )


def _front(table: Sequence[Curve]) -> list[int]:
    return pareto.front([(curve.values[-1], curve.cost) for curve in table])


def _bests(table: Sequence[Curve]) -> Iterator[int]:
    for share in (0.25, 0.5, 1.0):
        limit = np.quantile([curve.cost for curve in table], share)
        within = (i for i, curve in enumerate(table) if curve.cost <= limit)
        yield max(within, key=lambda i: table[i].values[-1])


def _volume(table: Sequence[Curve], chosen: Sequence[int], *, log: bool = False) -> float:
    costs = [math.log(curve.cost) if log else curve.cost for curve in table]
    floor = float(np.quantile([curve.values[-1] for curve in table], 0.25))
    points = [(table[i].values[-1], costs[i]) for i in chosen]
    return pareto.hypervolume(points, (floor, max(costs)))


CASES: dict[str, tuple[Stop, float]] = {
    "safe": (by_rule("safe"), 1.0),
    "asha": (asha, 1.0),
    "unstopped, a quarter": (lambda *_: False, QUARTER),
    "safe, a quarter": (by_rule("safe"), QUARTER),
    "tight, a quarter": (by_rule("tight"), QUARTER),
}


def measure(tables: Sequence[Sequence[Curve]], shuffles: int) -> dict[str, Kept]:
    """Return the means over shuffles, the same ones in every case, of the tables by turns."""
    studies = []
    for seed in range(shuffles):
        table = tables[seed % len(tables)]
        studies.append((table, np.random.default_rng(seed).permutation(len(table)).tolist()))
    found = {}
    for case, (stop, share) in CASES.items():
        runs = [replay(table, order, stop, share=share) for table, order in studies]
        names = [item.name for item in fields(Kept)]
        means = {name: float(np.mean([getattr(run, name) for run in runs])) for name in names}
        found[case] = Kept(**{name: round(mean, 4) for name, mean in means.items()})
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Return 1 when a bar is missed on any table."""
    parser = argparse.ArgumentParser(prog="benchmarks stopping_tables", description=__doc__)
    parser.add_argument("--curves", type=Path, help="measured curves, replayed as well")
    parser.add_argument("--shuffles", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write there what is printed")
    parser.add_argument("--statistics", type=Path, help="write those of the measured curves there")
    given = parser.parse_args(argv)
    if given.statistics and not given.curves:
        parser.error("--statistics are those of --curves FILE, which is missing")
    chains = read_statistics()
    tables = {
        "made": [made_table(chains, students=STUDENTS, seed=seed) for seed in range(MADE)],
        "stress": [stress_table(students=200, seed=0)],
    }
    if given.curves:
        tables["measured"] = [measured_table(given.curves)]
    if given.statistics:
        write_statistics(statistics_of(tables["measured"][0]), given.statistics)
    told, is_met = {}, True
    for name, several in tables.items():
        fronts = ", ".join(str(len(_front(table))) for table in several)
        print(f"{name}: {len(several[0])} students, {fronts} on the front")
        kept = measure(several, given.shuffles)
        told[name] = {case: asdict(values) for case, values in kept.items()}
        for case, values in told[name].items():
            shown = (f"{key} {value:.3f}" for key, value in values.items())
            print(f"  {case:22}", *shown, flush=True)
        if name != "stress":
            is_met &= _meets_bars(kept)
    if given.json:
        given.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 0 if is_met else 1


def _meets_bars(kept: dict[str, Kept]) -> bool:
    for bar in BARS:
        value = getattr(kept[bar.case], bar.name)
        print(f"  {bar}: {value} {'met' if bar.is_met(kept[bar.case]) else 'MISSED'}")
    return all(bar.is_met(kept[bar.case]) for bar in BARS)
