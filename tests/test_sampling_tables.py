"""The tables of sampling know what their students are worth, and every case is run on them."""

from __future__ import annotations

import pytest

from benchmarks.sampling_tables import (
    FAMILIES,
    STAGES,
    Student,
    by_us,
    of_families,
    of_stages,
    table_of,
)

pytestmark = pytest.mark.slow  # a script, not the package

LEAST = {f"student.resnet.width{i}": 2 for i in range(4)} | {
    f"student.resnet.depth{i}": 1 for i in range(4)
}


def test_flops_are_the_closed_form() -> None:
    """Widths 16, 32, 64, 128 at 32, 16, 8, 4 pixels: 4 x 9 * 16 * 16 * 32 * 32, and 432 * 16."""
    assert of_stages(LEAST).flops == 4 * 9 * 256 * 1024 + 432 * 16


def test_the_volume_is_a_share_of_what_keeps_the_budget() -> None:
    """Of costs 1 to 21, 5 is the budget; accuracies there are 0, .25, .5, .75, 1: the floor is .25.

    The whole is (.5 - .25) * (4 - 3) + (.75 - .25) * (5 - 4) = .75.
    """
    students = [Student(val=min(1.0, n / 4), flops=1e6 * (n + 1)) for n in range(21)]
    table = table_of(STAGES, of_stages, students)
    assert (table.mflops, table.floor) == (pytest.approx(5.0), pytest.approx(0.25))
    assert table.whole == pytest.approx(0.75e6)
    assert table.volume(students) == pytest.approx(1.0)
    assert table.volume([students[3]]) == pytest.approx(0.5 / 0.75)
    assert table.volume([students[20]]) == 0.0


def test_what_we_train_is_counted_and_keeps_the_budget() -> None:
    students = [of_families(params) for params in FEW]
    table = table_of(FAMILIES, of_families, students)
    trained = by_us(table, 0, 5)
    assert len(trained) == 5
    assert all(table.is_within(student) for student in trained)


FEW = [
    {
        "student.family": "resnet",
        "student.resnet.width": width,
        "student.resnet.depth": depth,
        "student.resolution": 32,
        "method.name": "none",
        "train.lr": 0.1,
    }
    for width in (0.25, 0.5, 1.0, 2.0)
    for depth in (3, 9)
]
