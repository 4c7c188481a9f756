"""Two studies compared, on values worked out by hand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from table_study import REQUEST, opened, run_to

from kdsearch.cli.tables import comparison_table
from kdsearch.errors import SpecError
from kdsearch.report.comparison import compare
from kdsearch.spec import Cost
from kdsearch.study.config import StudyConfig
from kdsearch.study.open import load_study
from kdsearch.study.study import OpenStudy
from kdsearch.study.trial_notes import TrialOutcome


def study_of(
    path: Path, points: list[tuple[float, int]], config: StudyConfig = REQUEST
) -> OpenStudy:
    """Return a study whose trials have these accuracies and MFLOPs."""
    with opened(path, config) as study:
        for val, mega in points:
            cost = Cost(flops=mega * 1_000_000, params=mega, latency_ms=mega / 2)
            curve = (val / 2, val)
            study.tell(
                study.ask(),
                TrialOutcome(state="complete", cost=cost, val=val, curve=curve, seconds=2.0),
            )
    return load_study(path)


def test_hypervolumes_count_from_one_reference(fast_path: Path) -> None:
    """Corners .9 and 2; margins of a tenth: from .46 and 10.8. Whole: .44 * 8.8 = 3.872.

    One: (.5, 2), (.9, 10): .04 * 8.8 + .4 * .8 = .672. Other: (.8, 4): .34 * 6.8 = 2.312.
    """
    one = study_of(fast_path / "one", [(0.5, 2), (0.9, 10), (0.4, 3)])
    other = study_of(fast_path / "other", [(0.8, 4), (0.7, 5)])
    found = compare(one, other)
    assert found.axis == "flops"
    assert found.reference == pytest.approx((0.46, 10.8e6))
    first, second = found.sides
    assert first.hypervolume == pytest.approx(0.672 / 3.872)
    assert second.hypervolume == pytest.approx(2.312 / 3.872)
    assert [trial for trial, _, _ in first.front] == [0, 1]
    assert (first.trials, first.trained, first.epochs, first.seconds) == (3, 3, 6, 6.0)
    assert found.differs == ()


def test_studies_of_one_metric_compare_whatever_its_noise(fast_path: Path) -> None:
    one = study_of(fast_path / "quiet", [(0.5, 2), (0.9, 10)])
    other = study_of(fast_path / "noisy", [(0.8, 4)])
    same = compare(one, other)
    with opened(fast_path / "noisy", REQUEST) as study:
        study.update_facts(metric=replace(study.metric, image_variance=0.3))
    noisy = load_study(fast_path / "noisy")
    assert noisy.metric != one.metric
    assert compare(one, noisy).reference == same.reference


def test_a_point_is_dominated_by_one_that_is_no_worse_and_better_once(fast_path: Path) -> None:
    side = compare(*[study_of(fast_path / "dominates", [(0.8, 4)])] * 2).sides[0]
    assert side.dominates(0.8, 5e6)
    assert side.dominates(0.7, 4e6)
    assert not side.dominates(0.8, 4e6)
    assert not side.dominates(0.9, 5e6)


def test_equal_studies_have_equal_volumes(fast_path: Path) -> None:
    with opened(fast_path / "equal") as study:
        run_to(study, 12)
    sides = compare(*[load_study(fast_path / "equal")] * 2).sides
    assert sides[0] == sides[1]
    assert 0 < sides[0].hypervolume <= 1


def test_single_points_have_a_volume(fast_path: Path) -> None:
    study = study_of(fast_path / "single", [(0.8, 4)])
    assert compare(study, study).sides[0].hypervolume == pytest.approx(1.0)


def test_studies_that_optimise_different_costs_need_an_axis(fast_path: Path) -> None:
    one = study_of(fast_path / "by flops", [(0.5, 2)])
    timed = replace(REQUEST, budget_mflops=None, budget_ms=9.0, seed=4)
    other = study_of(fast_path / "by ms", [(0.6, 2)], timed)
    with pytest.raises(SpecError, match="--axis flops or --axis latency_ms"):
        compare(one, other)
    found = compare(one, other, axis="latency_ms")
    assert [cost for side in found.sides for _, _, cost in side.front] == [1.0, 1.0]
    assert set(found.differs) == {"--budget-mflops", "--budget-ms", "--seed"}
    with pytest.raises(SpecError, match="expected one of latency_ms, flops, params"):
        compare(one, other, axis="watts")


@pytest.mark.parametrize("other", [{"target": "openvino"}, {"threads": 2}, {"batch": 8}])
def test_latencies_of_different_targets_are_not_compared(
    fast_path: Path, other: dict[str, Any]
) -> None:
    timed = replace(REQUEST, budget_mflops=None, budget_ms=9.0)
    (changed,) = other
    one = study_of(fast_path / f"on cpu, not {changed}", [(0.5, 2), (0.6, 4)], timed)
    two = study_of(fast_path / f"by {changed}", [(0.7, 2)], replace(timed, **other))

    found = compare(one, two)
    assert found.axis == "flops"
    _, *notes = comparison_table(found)
    (shown,) = (note for note in notes if "Latencies of different targets" in note)
    assert all(target in shown for target in found.targets)
    with pytest.raises(SpecError, match="give --axis flops or --axis params"):
        compare(one, two, axis="latency_ms")
    by_params = study_of(
        fast_path / f"params, {changed}",
        [(0.7, 2)],
        replace(timed, **other, budget_ms=None, budget_mparams=9.0),
    )
    assert compare(one, by_params).axis == "params"


def test_a_study_without_a_complete_trial_is_refused(fast_path: Path) -> None:
    with opened(fast_path / "empty") as study:
        study.ask()
    empty = load_study(fast_path / "empty")
    with pytest.raises(SpecError, match="'empty' has no complete trial whose flops is known"):
        compare(empty, empty)


def test_the_command_prints_both_fronts(fast_path: Path) -> None:
    study_of(fast_path / "a", [(0.5, 2), (0.9, 10)])
    study_of(fast_path / "b", [(0.8, 1)], replace(REQUEST, seed=7))
    line = [sys.executable, "-m", "kdsearch", "compare", "a", "b", "--out", str(fast_path)]
    shown = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert "50.00 % at 2 *" in shown
    assert "90.00 % at 10 " in shown
    assert "80.00 % at 1 " in shown
    assert "The configurations differ in --seed" in shown
