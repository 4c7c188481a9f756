"""A study's plan: epochs, batch size and rungs follow from its images and its spend."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kdsearch.errors import SpecError
from kdsearch.spec import TrialRecord
from kdsearch.study.config import StudyConfig
from kdsearch.study.plan import (
    MANY,
    about_epochs,
    about_plan,
    batch_for,
    halving_of,
    spent_epochs,
    with_plan,
)
from kdsearch.study.summary import EpochsSpent

SPACE = "student: {family: resnet}\ntrain: {epochs: 30}\n"
CONFIG = StudyConfig(space=SPACE)


def test_a_spend_decides_epochs_and_looks_and_resumes_as_it_began() -> None:
    config = with_plan(CONFIG, 1500, trials=None, spend=48)
    assert (config.epochs, config.look_epochs, config.batch_size) == (38, 2, 32)
    assert dict(config.search_space().dims)["train.epochs"].value == 38  # type: ignore[union-attr]
    halving = halving_of(config, 1500, trials=None, spend=48)
    assert [(rung.count, rung.epochs) for rung in halving.rungs] == [(4, 2), (1, 38)]
    assert halving_of(config, 1500, trials=4, spend=48) == halving
    assert [*about_plan(halving)] == [
        "Plan: 4 trials of 2 epochs, 1 training resumed until epoch 38; with controls 48 epochs, "
        "79% of them for what is trained in full"
    ]


@pytest.mark.parametrize("spend", [1, 2, 3, 7, 20, 48, 200])
@pytest.mark.parametrize("epochs", [None, 1, 4, 30])
def test_a_study_that_has_begun_keeps_to_its_spend(spend: int, epochs: int | None) -> None:
    if epochs is not None and epochs > spend:
        return
    config = with_plan(replace(CONFIG, epochs=epochs), 1500, trials=None, spend=spend)
    halving = halving_of(config, 1500, trials=None, spend=spend)
    assert halving.total <= spend
    assert halving_of(config, 1500, trials=halving.trials, spend=spend) == halving


def test_a_spend_that_is_given_on_resume_changes_no_length() -> None:
    """The trials that are there have the epochs and the first looks that they began with."""
    config = with_plan(CONFIG, 5000, trials=None, spend=None)
    halving = halving_of(config, 5000, trials=None, spend=200)
    assert (halving.epochs, halving.look) == (30, config.look_epochs)
    assert halving.total <= 200


def test_the_epochs_of_the_space_or_the_flag_are_those_of_a_training_in_full() -> None:
    config = with_plan(CONFIG, 5000, trials=None, spend=None)
    assert (config.epochs, config.look_epochs) == (None, 3)
    assert halving_of(config, 5000, trials=None, spend=None).epochs == 30
    given = with_plan(replace(CONFIG, epochs=8), 5000, trials=6, spend=None)
    assert (given.epochs, given.look_epochs) == (8, 1)


@pytest.mark.parametrize(
    ("images", "epochs"), [(50_000, 30), (1500, 48), (1500, 4), (10, 1), (128, 1000)]
)
def test_the_batch_is_the_largest_that_leaves_many_steps(images: int, epochs: int) -> None:
    size = batch_for(images, epochs)
    steps = {batch: epochs * (images // batch) for batch in (128, 64, 32)}
    enough = [batch for batch, count in steps.items() if count >= MANY]
    assert size == max(enough, default=32)


def test_a_batch_size_of_the_space_or_the_flag_is_kept() -> None:
    config = StudyConfig(space=SPACE.replace("}\ntrain: {", "}\ntrain: {batch_size: 77, "))
    assert with_plan(config, 1500, trials=None, spend=48).batch_size is None
    assert with_plan(replace(CONFIG, batch_size=9), 1500, trials=None, spend=48).batch_size == 9


@pytest.mark.parametrize(
    ("config", "spend", "message"),
    [
        (replace(CONFIG, stopping="off"), 48, "--spend 48 needs --stopping halving"),
        (StudyConfig(space="student: {family: resnet}\ntrain: {epochs: {int: [1, 9]}}"), 48,
         "a space that does not search train.epochs"),
        (replace(CONFIG, epochs=50), 48, "--spend 48: a spend of 48 epochs is less than one"),
    ],
)  # fmt: skip
def test_a_spend_that_does_not_fit_is_refused(
    config: StudyConfig, spend: int, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        with_plan(config, 1500, trials=None, spend=spend)


def test_without_halving_every_trial_is_trained_in_full() -> None:
    for stopping in ("off", "safe"):
        config = with_plan(replace(CONFIG, stopping=stopping), 5000, trials=7, spend=None)
        halving = halving_of(config, 5000, trials=7, spend=None)
        assert [(rung.count, rung.epochs) for rung in halving.rungs] == [(7, 30)]
        assert not [*about_plan(halving)]


def test_the_epochs_of_a_study_are_accounted_for() -> None:
    def record(number: int, epochs: int, **more: object) -> TrialRecord:
        return TrialRecord(
            number=number,
            state="complete",
            params={},
            curve=(0.5,) * epochs,
            **more,  # type: ignore[arg-type]
        )

    records = [
        record(0, 2),
        record(1, 38),
        record(2, 2, reused_from=0),
        record(3, 4, control_of=1),
        record(4, 10, refit_of=1),
    ]
    spent = spent_epochs(records, 2, 1)
    assert spent == EpochsSpent(looks=4, controls=4, further=46, shipped=38)
    assert spent.total == 2 + 38 + 4 + 10
    assert about_epochs(spent) == (
        "54 epochs were trained: 4 in first looks, 4 in controls, 46 in resumed trainings. "
        "The student that ships was trained for 38."
    )
    in_full = EpochsSpent(looks=40, controls=4, further=10, shipped=2)
    assert spent_epochs(records, None, 0) == in_full


@pytest.mark.parametrize(
    ("student", "look"),
    [
        ("{family: resnet}", 1),
        ("{family: resnet, init: pretrained}", 1),
        ("{family: resnet, init: {choice: [scratch, pretrained]}}", 2),
        ("{family: {choice: {resnet: {init: pretrained}, vit: {}}}}", 2),
    ],
)
def test_first_looks_have_two_epochs_where_students_start_differently(
    student: str, look: int
) -> None:
    config = StudyConfig(space=f"student: {student}\ntrain: {{epochs: 8}}\n")
    assert with_plan(config, 50_000, trials=None, spend=None).look_epochs == look
