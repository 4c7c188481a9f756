"""Limits as shares of the teacher's own cost: read, resolved once, and kept for the next run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kdsearch.errors import SpecError, StudyError
from kdsearch.study.budget_shares import Share, read_limit
from kdsearch.study.config import config_of
from kdsearch.study.config_changes import refuse_changes
from kdsearch.study.open import open_study
from kdsearch.study.options import RunOptions
from kdsearch.study.sampler_check import refuse_sampler
from kdsearch.study.summary import TeacherEntry
from kdsearch.workflows.resolve import FIRST_RUN, FIRST_SPEND, resolve, resolved

TEACHER = TeacherEntry(
    name="auto", val=0.99, test=None, flops=2_560_000, params=78_042, latency_ms=0.1084
)
SPACE = "student: {family: resnet}"


@pytest.mark.parametrize(
    ("text", "limit"),
    [("10", 10.0), ("0.5", 0.5), ("0.5x", Share(0.5)), (" 2x", Share(2.0)), ("1e-1x", Share(0.1))],
)
def test_a_limit_is_a_number_or_a_share(text: str, limit: object) -> None:
    assert read_limit(text, "--budget-ms") == limit


@pytest.mark.parametrize("text", ["", "x", "half", "0x", "-1x", "nanx", "infx", "0.5 y", "5xx"])
def test_other_texts_are_refused_with_what_is_accepted(text: str) -> None:
    with pytest.raises(SpecError, match=r"expected a number above 0, or a share .* as 0.5x"):
        read_limit(text, "--budget-ms")


def test_each_share_is_of_the_teachers_own_cost() -> None:
    given = {"budget_ms": Share(0.5), "budget_mflops": Share(0.25), "budget_mparams": Share(0.3)}
    config, lines = resolved(config_of(given), TEACHER)
    assert (config.budget_ms, config.budget_mflops, config.budget_mparams) == (0.0542, 0.64, 0.0234)
    assert lines == [
        "Budget: 0.0542 ms, half of the teacher's 0.108 ms",
        "Budget: 0.64 MFLOPs, a quarter of the teacher's 2.56 MFLOPs",
        "Budget: 0.0234 M parameters, 0.3 of the teacher's 0.078 M parameters",
    ]
    assert resolved(config, replace(TEACHER, latency_ms=7.0)) == (config, [])


def test_a_share_of_a_latency_is_of_the_upper_end_that_students_are_held_to() -> None:
    """On a busy machine both upper ends are far off, by the same slow phases."""
    teacher = replace(TEACHER, latency_high_ms=0.25)
    config, (line,) = resolved(config_of({"budget_ms": Share(0.5)}), teacher)
    assert config.budget_ms == 0.125
    assert line == "Budget: 0.125 ms, half of the teacher's 0.25 ms"


def test_a_share_of_an_unknown_cost_is_refused() -> None:
    with pytest.raises(SpecError, match=r"--budget-ms 0.5x: .* not known, so give a number in ms"):
        resolved(config_of({"budget_ms": Share(0.5)}), replace(TEACHER, latency_ms=None))


def test_the_axis_of_the_front_is_known_before_a_share_is_resolved() -> None:
    for given in ({"budget_ms": Share(0.5)}, {"budget_mparams": Share(0.5)}, {}):
        config = config_of({**given, "budget_mflops": 1.0})
        assert config.axis() == resolved(config, TEACHER)[0].budget.axis()
    with pytest.raises(SpecError, match="--budget-ms"):
        refuse_sampler(config_of({"budget_ms": Share(0.5), "space": SPACE, "sampler": "nsga2"}))


def test_a_study_accepts_its_share_again_and_no_other(tmp_path: Path) -> None:
    config, _ = resolved(config_of({"budget_ms": Share(0.5), "space": SPACE}), TEACHER)
    with open_study(tmp_path / "phones", config, versions={}) as study:
        stored = study.config
    for again in ({"budget_ms": Share(0.5)}, {"budget_ms": 0.0542}, {}):
        same = config_of(again, stored)
        refuse_changes("phones", stored, same)
        assert same == config
    for other, shown in (({"budget_ms": Share(0.4)}, "0.4x"), ({"budget_ms": 0.06}, "0.06")):
        with pytest.raises(StudyError, match=f"--budget-ms: 0.0542 -> {shown}"):
            refuse_changes("phones", stored, config_of(other, stored))
    numeric = replace(stored, budget_shares={})
    with pytest.raises(StudyError, match=r"--budget-ms: 0.0542 -> 0.5x"):
        refuse_changes("phones", numeric, config_of({"budget_ms": Share(0.5)}, numeric))


def test_a_run_without_images_space_and_budget_gets_a_budget_that_binds(tmp_path: Path) -> None:
    config, options, *_ = resolve({}, tmp_path, None, RunOptions())
    assert (config.epochs, options.spend) == (FIRST_RUN["epochs"], FIRST_SPEND)
    assert resolve({}, tmp_path, None, RunOptions(trials=3))[1].spend is None
    assert (config.data, config.budget_ms) == ("digits", None)
    assert config.budget_shares == {"budget_ms": 0.5}
    assert config.teacher_epochs == FIRST_RUN["teacher_epochs"]
    assert resolve({"teacher_epochs": 2}, tmp_path, None, RunOptions())[0].teacher_epochs == 2
    study = {"teacher": "cifar_resnet20", "teacher_epochs": 1}
    for given in ({"data": "digits"}, {"budget_ms": 10.0}, {"budget_mparams": 1.0}, study):
        config, *_ = resolve(given, tmp_path, None, RunOptions())
        assert config.budget_shares == {}
        assert config.teacher_epochs == given.get("teacher_epochs")


def test_a_study_without_a_budget_gets_none_when_it_is_resumed(tmp_path: Path) -> None:
    config, *_, path = resolve({"data": "digits"}, tmp_path, "plain", RunOptions())
    with open_study(path, config, versions={}):
        pass
    assert resolve({}, tmp_path, "plain", RunOptions())[0] == config
