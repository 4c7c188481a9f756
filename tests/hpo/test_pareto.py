"""Dominance against brute force, areas against a grid. A point is (quality up, cost down)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsearch.hpo.pareto import front, hypervolume, knee

Point = tuple[float, float]
NAN = math.nan

# Small whole numbers, so that ties and equal points are common.
points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)
with_nan = st.lists(
    st.tuples(st.sampled_from([0.0, 1.0, 2.0, NAN]), st.sampled_from([0.0, 1.0, 2.0, NAN])),
    max_size=10,
)


def dominates(one: Point, other: Point) -> bool:
    return one[0] >= other[0] and one[1] <= other[1] and one != other


def brute_front(given: list[Point]) -> list[int]:
    clean = [i for i, point in enumerate(given) if not any(map(math.isnan, point))]
    return [
        i
        for i in clean
        if not any(dominates(given[j], given[i]) for j in clean)
        and not any(given[j] == given[i] for j in clean if j < i)
    ]


def brute_area(given: list[Point], reference: tuple[int, int]) -> int:
    """Count the unit squares between the reference and the points."""
    quality, limit = reference
    return sum(
        any(value >= y + 1 and cost <= x for value, cost in given)
        for y in range(quality, 7)
        for x in range(limit)
    )


@given(points | with_nan)
def test_front_equals_brute_force(given: list[Point]) -> None:
    assert sorted(front(given)) == brute_front(given)


@given(points)
def test_front_is_ordered_from_cheap_and_poor_to_costly_and_good(given: list[Point]) -> None:
    chosen = [given[i] for i in front(given)]
    for (value, cost), (better, dearer) in pairwise(chosen):
        assert better > value
        assert dearer > cost


@given(points.flatmap(lambda given: st.tuples(st.just(given), st.permutations(given))))
def test_front_holds_the_same_points_in_any_order(pair: tuple[list[Point], list[Point]]) -> None:
    given, shuffled = pair
    assert [given[i] for i in front(given)] == [shuffled[i] for i in front(shuffled)]


def test_of_equal_points_the_first_is_kept() -> None:
    assert front([(0.1, 1.0), (0.9, 5.0), (0.9, 5.0), (0.1, 1.0)]) == [0, 1]


def test_a_point_with_a_nan_is_never_on_the_front() -> None:
    assert front([(NAN, 1.0), (0.5, NAN), (0.5, 9.0)]) == [2]
    assert front([]) == []


@given(points, st.integers(0, 6), st.integers(0, 7))
def test_hypervolume_counts_the_dominated_squares(
    given: list[Point], quality: int, limit: int
) -> None:
    assert hypervolume(given, (quality, limit)) == brute_area(given, (quality, limit))


@given(points, st.tuples(st.integers(0, 6), st.integers(0, 6)))
def test_a_further_point_never_takes_area_away(given: list[Point], further: Point) -> None:
    assert hypervolume([*given, further], (0.0, 7.0)) >= hypervolume(given, (0.0, 7.0))


def test_hypervolume_of_a_staircase() -> None:
    # Costs 1 to 4 at .5 - .1, costs 4 to 10 at .9 - .1: 3 * .4 + 6 * .8
    assert hypervolume([(0.9, 4.0), (0.5, 1.0)], (0.1, 10.0)) == pytest.approx(6.0)
    assert hypervolume([(0.9, 10.0), (0.1, 1.0), (NAN, 0.0)], (0.1, 10.0)) == 0.0


def test_knee_is_the_point_above_the_chord() -> None:
    # Scaled: (0, 0), (.8, .2), (.9, .6), (1, 1); above the chord by 0, .6, .3, 0. Costs from 0 on
    # are not taken to the logarithm.
    assert knee([(1.0, 10.0), (0.9, 6.0), (0.8, 2.0), (0.0, 0.0)]) == 2


def test_knee_scales_positive_costs_by_their_logarithm() -> None:
    # log10: 0, 1, 2 of 2; qualities 0, .4, 1: the middle is .1 below the chord, though on a linear
    # axis it would be .3 above it.
    assert knee([(0.0, 1.0), (0.4, 10.0), (1.0, 100.0)]) == 0
    assert knee([(0.0, 0.0), (0.4, 10.0), (1.0, 100.0)]) == 1


def test_knee_of_a_short_front_is_its_best() -> None:
    assert knee([]) is None
    assert knee([(NAN, 1.0)]) is None
    assert knee([(0.5, 1.0)]) == 0
    assert knee([(0.9, 5.0), (0.5, 1.0), (0.4, 2.0)]) == 0
