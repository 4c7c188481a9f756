"""A student that learned nothing is never praised: no gain, no "Ship", a warning instead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from made_up import make_study, surrounded
from table_study import opened, run_to

from kdsearch.report import tables
from kdsearch.report.findings import about_controls, about_refits
from kdsearch.report.verdict import verdict
from kdsearch.spec import TrialRecord
from kdsearch.study.facts import Refit
from kdsearch.study.refit import missing, summarised
from kdsearch.study.study import OpenStudy
from kdsearch.study.summary import is_at_chance
from kdsearch.study.trial_notes import TrialOutcome
from kdsearch.tasks.base import ACCURACY
from kdsearch.tasks.classification import Classification

TEACHER = {"name": "t", "val": 0.9, "test": None, "flops": 1, "params": 1, "latency_ms": None}


@pytest.fixture
def study(tmp_path: Path) -> Iterator[OpenStudy]:
    """A study of ten classes and 1,000 validation images: at chance up to 11.9 %."""
    with opened(tmp_path / "phones") as study:
        images = {"train": 1_000, "val": 1_000, "test": 10}
        study.update_facts(teacher=TEACHER, chance=0.1, images=images)
        yield study


def sentences(best: float, study: OpenStudy, **vals: float) -> list[str]:
    """Return the findings on a trial and its controls, by method."""
    run_to(study, 4)
    record = replace(study.front()[-1], val=best, curve=(best / 2, best), epochs=2)
    controls = [
        TrialRecord(
            number=90 + i, state="complete", params={"method.name": name}, val=val,
            curve=(val / 2, val), epochs=2, control_of=record.number,
        )
        for i, (name, val) in enumerate(vals.items())
    ]  # fmt: skip
    found = max([record, *controls], key=lambda each: each.val or 0.0)
    return list(about_controls(study, record, controls, 1_000, shipped=found.number))


def test_chance_is_the_share_of_the_most_frequent_class() -> None:
    task = Classification(["a", "b", "c"])
    assert task.chance(torch.tensor([0, 2, 2, 2, 1, -1, -1])) == pytest.approx(3 / 5)
    assert task.chance(torch.tensor([-1, -1])) is None


@pytest.mark.parametrize(
    ("val", "chance", "images", "expected"),
    [
        (0.119, 0.1, 1_000, True),  # two standard errors of 10 % on 1,000 images: 1.9 points
        (0.120, 0.1, 1_000, False),
        (0.05, 0.1, 1_000, True),
        (0.05, None, 1_000, False),
        (0.05, 0.1, None, False),
    ],
)
def test_chance_ends_two_standard_errors_above_it(
    val: float, chance: float | None, images: int | None, expected: bool
) -> None:
    assert is_at_chance(ACCURACY, val, chance, images) is expected


def test_a_shipped_student_at_chance_gets_a_warning_and_no_gain(study: OpenStudy) -> None:
    found = sentences(0.106, study, none=0.095, kd=0.101)
    assert found[0].startswith("Do not use trial ")
    assert "10.60 %, is no better than one constant answer (10.00 %), beyond noise." in found[0]
    assert not any("ained" in line for line in found)


def test_no_gain_is_stated_over_a_control_at_chance(study: OpenStudy) -> None:
    found = sentences(0.208, study, none=0.095, kd=0.19)
    assert found[0] == (
        "No gain is stated over the same student without a teacher: at 9.50 % it is no better than "
        "one constant answer (10.00 %), beyond noise."
    )
    assert found[1].startswith("No measurable gain over the same student with plain KD")


def test_a_control_above_chance_ships_without_a_warning(study: OpenStudy) -> None:
    found = sentences(0.106, study, none=0.3)
    assert not any("Do not use" in line or "ained" in line for line in found)
    assert any("is shipped" in line for line in found)


def test_refits_at_chance_have_no_gain(study: OpenStudy) -> None:
    def poor(*_: object) -> TrialOutcome:
        return TrialOutcome(state="complete", cost=study.front()[-1].cost, val=0.1, curve=(0.1,))

    run_to(study, 4)
    study.update_facts(refit=Refit(count=2, seeds=2))
    for proposal in missing(study, study.facts.refit):
        study.tell(proposal, poor())
    first = summarised(study)[0][0]
    study.update_facts(best=first.trial, shipped=first.trained.trials[0])
    found = list(about_refits(study, first.trial))
    assert sum(line.startswith("Do not use trial ") for line in found) == 1
    assert not any("ained" in line.replace("retrained", "") for line in found)


def test_the_verdict_and_the_table_of_gains_praise_nothing_at_chance() -> None:
    summary, records = surrounded(make_study())
    summary = replace(summary, chance=0.97)
    text = verdict(summary, records).replace("\u00a0", " ")
    assert text.startswith(f"Do not use trial {summary.best}: its validation accuracy")
    assert "Ship" not in text
    table = tables.gains(summary, records)
    assert table is not None
    assert {row[3] for row in table.rows} == {"", "at chance"}
    assert {row[5] for row in table.rows} == {"", "at chance"}
