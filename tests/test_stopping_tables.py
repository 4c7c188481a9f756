"""The replay of stopping counts what was spent, kept and lost."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from benchmarks.stopping_tables import Kept, made_table, measured_table, replay
from kdsearch.stopping import Curve


def flat(value: float, cost: float) -> Curve:
    return Curve(values=(value,) * 16, epochs=16, cost=cost)


def test_without_stopping_all_is_spent_and_kept() -> None:
    kept = replay(made_table(), range(200), lambda *_: False)
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
