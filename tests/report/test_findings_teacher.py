"""A teacher is said to know the validation images only beyond noise, and not if trained here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from table_study import REQUEST, opened

from kdsearch.report.findings import about_teacher
from kdsearch.study.study import OpenStudy
from kdsearch.study.summary import Images, TeacherEntry


@pytest.fixture(params=["auto", "timm:resnet18.a1_in1k"])
def study(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenStudy]:
    with opened(tmp_path / "table", replace(REQUEST, teacher=request.param)) as study:
        yield study


def sentences(study: OpenStudy, val: float, test: float, images: Images) -> list[str]:
    teacher = TeacherEntry(name="t", val=val, test=test, flops=None, params=1, latency_ms=None)
    study.update_facts(teacher=teacher, images=images)
    return list(about_teacher(study, None))


@pytest.mark.parametrize(
    ("val", "test", "n_val", "n_test"),
    [
        (0.2292, 0.1667, 48, 12),  # a public case: a difference below one standard error
        (0.97, 0.885, 60, 60),
        (0.99, 0.95, 10_000, 10_000),  # beyond noise, and small
        (0.9, 0.97, 500, 500),
    ],
)
def test_noise_and_small_drops_accuse_nobody(
    val: float, test: float, n_val: int, n_test: int, study: OpenStudy
) -> None:
    assert sentences(study, val, test, Images(train=100, val=n_val, test=n_test)) == []


def test_a_large_drop_is_said_with_the_reason_that_can_be(study: OpenStudy) -> None:
    (found,) = sentences(study, 0.97, 0.80, Images(train=100, val=200, test=200))
    assert ("trained on these validation images" in found) is (study.config.teacher != "auto")
    assert ("the two splits differ" in found) is (study.config.teacher == "auto")
