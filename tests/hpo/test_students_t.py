"""Student's t, against printed tables and its own inverse."""

from __future__ import annotations

import pytest

from kdsearch.hpo.statistics import student_point, student_tail


def test_students_tail_has_the_values_of_the_printed_tables() -> None:
    """Upper 5 % points of t (Abramowitz and Stegun, table 26.10), and its symmetry."""
    for freedom, point in ((1, 6.314), (2, 2.920), (3, 2.353), (4, 2.132), (10, 1.812)):
        assert student_tail(point, freedom) == pytest.approx(0.05, abs=1e-4)
        assert student_tail(-point, freedom) == pytest.approx(0.95, abs=1e-4)
    assert student_tail(1.0, 1) == pytest.approx(0.25)  # Cauchy: 1/2 - atan(1) / pi


@pytest.mark.parametrize(
    ("freedom", "point"), [(1, 12.706), (2, 4.303), (4, 2.776), (18, 2.101), (120, 1.980)]
)
def test_students_point_has_the_values_of_the_printed_tables(freedom: int, point: float) -> None:
    """Upper 2.5 % points of t (Abramowitz and Stegun, table 26.10)."""
    assert student_point(0.025, freedom) == pytest.approx(point, abs=5e-4)


@pytest.mark.parametrize("freedom", [1, 2, 3, 18, 101])
@pytest.mark.parametrize("chance", [0.3, 0.05, 0.025, 1e-4])
def test_the_point_of_a_tail_is_where_the_tail_begins(freedom: int, chance: float) -> None:
    assert student_tail(student_point(chance, freedom), freedom) == pytest.approx(chance, rel=1e-6)
