"""The replay of stopping counts what was spent, kept and lost."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.curve_tables import (
    columns,
    made_table,
    measured_table,
    read_statistics,
    statistics_of,
    write_statistics,
)
from benchmarks.stopping_tables import Kept, replay
from kdsearch.hpo.stopping import Curve

pytestmark = pytest.mark.slow  # a script, not the package


def flat(value: float, cost: float) -> Curve:
    return Curve(values=(value,) * 16, epochs=16, cost=cost)


def test_without_stopping_all_is_spent_and_kept() -> None:
    table = made_table(read_statistics(), students=20, seed=0)
    kept = replay(table, range(40), lambda *_: False)
    assert kept == Kept(epochs=1.0, linear=1.0, log=1.0, front_lost=0.0, best_stopped=0.0)


def test_a_stopped_trial_costs_its_epochs_and_its_share_of_the_front() -> None:
    """Floor .2 (quartile of .2 .2 .4 .6 by interpolation); dearest 4; the .4 at cost 2 is stopped.

    Volume of all: (.4 - .2) * (3 - 2) + (.6 - .2) * (4 - 3) = .6; without the .4 it is .4.
    """
    table = [flat(0.2, 1.0), flat(0.4, 2.0), flat(0.6, 3.0), flat(0.2, 4.0)]
    kept = replay(table, range(4), lambda trial, _: trial.cost == 2.0 and len(trial.values) == 4)
    assert kept.epochs == (3 * 16 + 4) / (4 * 16)
    assert kept.linear == pytest.approx(0.4 / 0.6)
    assert kept.front_lost == pytest.approx(1 / 3)
    assert kept.best_stopped == pytest.approx(1 / 3)  # of a quarter: .2; half: .4; all: .6


def test_a_share_of_the_epochs_ends_a_replay() -> None:
    table = [flat(0.2 + cost / 100, cost) for cost in range(1, 9)]
    assert replay(table, range(8), lambda *_: False, share=0.25).epochs == 0.25


def test_a_measured_file_is_read_with_gaps_filled_and_repeats_left_out(tmp_path: Path) -> None:
    record = {"seed": 0, "schedule": "cos", "macs": 7, "ema_acc": [0.1, None, 0.3]}
    text = json.dumps({"records": [record, {**record, "seed": 1}]})
    file = tmp_path / "curves.json.gz"
    file.write_bytes(gzip.compress(text.encode()))
    assert measured_table(file) == [
        Curve(values=(0.1, 0.1, 0.3), epochs=3, cost=7.0, schedule="cos")
    ]


def test_made_curves_rank_and_spread_as_the_measured_ones() -> None:
    """Of 82 under cosine: Spearman .58, .82, .92, .98 with the end, medians .202, ... .422."""
    chains = {"cos": read_statistics()["cos"]}
    rows = columns(made_table(chains, students=4000, seed=0))
    ranks = np.argsort(np.argsort(rows, axis=0), axis=0)
    with_end = [float(np.corrcoef(ranks[:, k], ranks[:, -1])[0, 1]) for k in range(1, 5)]
    assert with_end == pytest.approx([0.58, 0.82, 0.92, 0.98], abs=0.08)
    medians = np.median(rows[:, 1:], axis=0)
    assert medians == pytest.approx([0.202, 0.274, 0.350, 0.397, 0.419, 0.422], abs=0.01)
    assert 0.005 < float(np.mean(rows[:, -1] < 0.25)) < 0.02  # 1 of 82 failed


def test_statistics_of_made_curves_are_those_they_were_made_by(tmp_path: Path) -> None:
    made_by = read_statistics()
    found = statistics_of(made_table(made_by, students=20_000, seed=1))
    write_statistics(found, tmp_path / "found.json")
    assert read_statistics(tmp_path / "found.json") == found
    for name, chain in made_by.items():
        assert found[name].log_costs == pytest.approx(chain.log_costs, abs=0.1)
        last, again = chain.steps[-1], found[name].steps[-1]
        assert again.slopes[3:] == pytest.approx(last.slopes[3:], abs=0.1)
        assert again.scale[0] == pytest.approx(last.scale[0], abs=0.2)
