"""Trainings that were too short are named, with the command that trains on."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdsearch.report.undertrained import about_training
from kdsearch.spec import TrialRecord
from kdsearch.study.summary import Images
from kdsearch.tasks.base import ACCURACY, Metric

IMAGES = Images(train=1_500, val=1_000, test=1_000)
BEST = Path("results/phones/best")


def trained(*curve: float, batch: int = 128) -> TrialRecord:
    params = {"student.family": "resnet", "train.batch_size": batch, "train.epochs": len(curve)}
    return TrialRecord(
        number=3, state="complete", params=params, val=curve[-1], curve=curve, epochs=len(curve)
    )


def sentences(record: TrialRecord, metric: Metric = ACCURACY, images: Images = IMAGES) -> list[str]:
    return list(about_training(record, metric, images, BEST))


def test_few_steps_are_counted_and_the_command_gives_enough() -> None:
    """1,500 images in batches of 128 are 11 steps an epoch; 200 steps are 19 epochs."""
    assert sentences(trained(0.20, 0.25, 0.26, 0.26)) == [
        "Trial 3 is under-trained: 44\u00a0steps, 11 an epoch. Give it at least 200, by more "
        "epochs or a smaller batch.",
        "More steps beat more trials here. `kdsearch distill --config "
        "results/phones/best/config.yaml --epochs 19` trains this student for longer, again from "
        "its start: its rate has fallen to 0.",
    ]


def test_one_step_is_singular() -> None:
    (first, _) = sentences(trained(0.2, batch=1_500))
    assert first.startswith("Trial 3 is under-trained: 1\u00a0step, 1 an epoch.")


def test_a_curve_that_rises_beyond_noise_is_said_to() -> None:
    """2 sqrt(2 * 0.5 * 0.5 / 1000) = 4.47 points; 30 steps an epoch, so that steps are many."""
    curve = (0.1, 0.2, 0.3, 0.4, 0.44, 0.50)
    assert sentences(trained(*curve, batch=50)) == [
        "The curve of trial 3 still rises: by 10.00 points over the last 2 of 6 epochs, where "
        "4.47 may be noise.",
        "More steps beat more trials here. `kdsearch distill --config "
        "results/phones/best/config.yaml --epochs 12` trains this student for longer, again from "
        "its start: its rate has fallen to 0.",
    ]


@pytest.mark.parametrize("rise", [-0.2, 0.0, 0.044])
def test_nothing_is_said_of_a_long_training_whose_end_is_flat_within_noise(rise: float) -> None:
    assert sentences(trained(0.3, 0.5 - rise, 0.5, batch=10)) == []


def test_the_noise_is_that_of_the_metric() -> None:
    fit = Metric(key="fit", label="fit", is_percent=False, image_variance=0.04)
    (first, _) = sentences(trained(0.30, 0.40, 0.50, batch=10), fit)  # 2 sqrt(2 * 0.04 / 1000)
    assert "rises: by 0.1000 over the last 1 of 3 epochs, where 0.0179 may be noise." in first


def test_nothing_is_said_without_images_or_a_curve() -> None:
    assert sentences(trained(0.1, 0.5), images=Images(val=10)) == []
    assert (
        sentences(TrialRecord(number=3, state="failed", params={"student.family": "resnet"})) == []
    )
