"""Conclusions on teachers: none from few images, none of chance, none within noise."""

from __future__ import annotations

import pytest

from kdsearch.workflows.calibration import Calibration
from kdsearch.workflows.check_report import TeacherCheck, on_teachers


def calibration(images: int, accuracy: float, temperature: float | None = 1.0) -> Calibration:
    return Calibration(
        images=images, accuracy=accuracy, confidence=0.9, nll=0.1, ece=0.1, temperature=temperature
    )


def notes(
    train: Calibration, val: Calibration, *, is_ours: bool = False, chance: float = 0.1
) -> list[str]:
    check = TeacherCheck(name="t", validation=val, train=train)
    return list(on_teachers([check], [is_ours], chance))


@pytest.mark.parametrize("temperature", [100.0, 0.06, None])
def test_twelve_images_allow_no_verdict(temperature: float | None) -> None:
    (found,) = notes(calibration(1000, 1.0), calibration(12, 1.0, temperature))
    assert found == (
        "Teacher t: 12 validation images are too few for a verdict on it; give at least 50"
    )


def test_a_teacher_at_chance_has_no_temperature() -> None:
    assert notes(calibration(1000, 0.18), calibration(334, 0.1796, 0.06), chance=0.1796) == []


def test_a_difference_within_noise_is_no_memorising() -> None:
    assert notes(calibration(1000, 0.995), calibration(60, 0.983), is_ours=True) == []
    (found,) = notes(calibration(1000, 0.995), calibration(1000, 0.9), is_ours=True)
    assert "it has memorised the former" in found


def test_a_teacher_trained_here_did_not_see_the_validation_images() -> None:
    perfect = calibration(500, 1.0)
    (found,) = notes(perfect, perfect)
    assert "if it was trained on them" in found
    assert notes(perfect, perfect, is_ours=True) == []


@pytest.mark.parametrize(("images", "accuracy"), [(50, 1.0), (100, 1.0), (1000, 0.992)])
def test_what_noise_explains_accuses_no_teacher_of_having_seen_the_images(
    images: int, accuracy: float
) -> None:
    """A teacher of 97 % is right on all of 50 images in every fifth draw."""
    found = notes(calibration(1000, 1.0), calibration(images, accuracy), is_ours=False)
    assert not any("trained on them" in note for note in found)
