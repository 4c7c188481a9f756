"""The hypervolume's growth over complete trials: values by hand."""

from __future__ import annotations

import pytest

from kdsearch.hpo.convergence import hypervolumes, is_flat, last_rise

POINTS = [(0.5, 5.0), (0.8, 10.0), (0.6, 5.0)]


def test_the_volumes_are_those_of_the_first_points_against_one_reference() -> None:
    """Reference (0, 11): 0.5 * 6; 0.5 * 5 + 0.8 * 1; 0.6 * 5 + 0.8 * 1."""
    assert hypervolumes(POINTS, (1, 2, 3), limit=10.0) == pytest.approx([3.0, 3.3, 3.8])


def test_without_a_limit_the_costliest_point_gives_the_reference() -> None:
    assert hypervolumes(POINTS, (1, 3)) == hypervolumes(POINTS, (1, 3), limit=10.0)


def test_no_points_have_no_volume() -> None:
    assert hypervolumes([], (0,)) == [0.0]
    assert not is_flat([], after=1)


@pytest.mark.parametrize(("gain", "flat"), [(0.0, True), (0.0009, True), (0.0011, False)])
def test_flat_is_a_growth_of_a_thousandth_at_most(gain: float, flat: bool) -> None:
    points = [(0.5, 1.0), (0.5 * (1 + gain), 1.0), (0.1, 1.0)]
    assert is_flat(points, after=2, limit=10.0) is flat


def test_only_the_last_so_many_points_count() -> None:
    points = [(0.5, 1.0), (0.9, 1.0), (0.1, 1.0), (0.1, 1.0)]
    assert is_flat(points, after=2)
    assert not is_flat(points, after=3)
    assert not is_flat(points, after=4)  # there is nothing before them


@pytest.mark.parametrize(
    ("curve", "rise"),
    [
        ((), (0.0, 0)),
        ((0.5,), (0.0, 0)),
        ((0.2, 0.5), (0.3, 1)),
        ((0.1, 0.2, 0.5, 0.45), (-0.05, 1)),
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.7), (0.3, 2)),
    ],
)
def test_the_last_rise_is_that_of_the_last_third(
    curve: tuple[float, ...], rise: tuple[float, int]
) -> None:
    assert last_rise(curve) == pytest.approx(rise)
