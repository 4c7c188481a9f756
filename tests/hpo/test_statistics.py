"""Intervals have their stated coverage; the paired test is the textbook's."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from kdsearch.hpo.statistics import Gain, Spread, gains, mean_gain, spreads

N = 2_000
ROUNDS = 1_000
Random = Callable[[random.Random], float]


def level(rng: random.Random) -> float:
    return 0.02


def uneven(rng: random.Random) -> float:
    return 0.02 * rng.uniform(0.5, 2.5)  # as 18 recipes on digits were


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(
    ("sd_of", "least", "most"),
    [(level, 0.945, 0.98), (uneven, 0.93, 0.98)],
    ids=["level", "uneven"],
)
def test_one_more_seed_ends_inside_in_19_of_20_cases(
    seeds: int, sd_of: Random, least: float, most: float
) -> None:
    rng = random.Random(seeds)
    inside = total = 0
    for _ in range(ROUNDS):
        recipes = [(rng.uniform(0.45, 0.55), sd_of(rng)) for _ in range(9)]
        groups = [[rng.gauss(mean, sd) for _ in range(seeds)] for mean, sd in recipes]
        for (mean, sd), spread in zip(recipes, spreads(groups, N), strict=True):
            inside += spread.low <= rng.gauss(mean, sd) <= spread.high
            total += 1
    assert least < inside / total < most


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_no_gain_is_shown_where_there_is_none_in_19_of_20_cases(seeds: int) -> None:
    """Controls share a candidate, and a seed moves all of its trainings alike."""
    rng = random.Random(seeds)
    shown = {"each": 0, "mean": 0}
    for _ in range(ROUNDS):
        pairs = []
        for _ in range(3):
            common = [rng.gauss(0.5, 0.02) for _ in range(seeds)]
            own, none, kd = ([c + rng.gauss(0, 0.02) for c in common] for _ in range(3))
            pairs += [(own, none), (own, kd)]
        shown["each"] += sum(gain.is_shown for gain in gains(pairs, N))
        shown["mean"] += mean_gain(pairs[::2], N).is_shown
    assert 0.02 < shown["each"] / (6 * ROUNDS) < 0.065
    assert 0.02 < shown["mean"] / ROUNDS < 0.065


def test_a_single_pair_of_recipes_has_the_paired_t_test_of_textbooks() -> None:
    """Differences .01, .02, .06: mean .03, sd .0264575, t = 1.9640 with 2 degrees of freedom.

    p = 1 - t / sqrt(t^2 + 2) = .18852; t at 97.5 % is 4.30265, times sd / sqrt(3) = .0657247.
    """
    (gain,) = gains([([0.51, 0.52, 0.56], [0.50, 0.50, 0.50])], N)
    assert gain.difference == pytest.approx(0.03)
    assert gain.p == pytest.approx(0.18852, abs=1e-4)
    assert gain.low == pytest.approx(0.03 - 0.0657247, abs=1e-6)
    assert gain.high == pytest.approx(0.03 + 0.0657247, abs=1e-6)
    assert (gain.pairs, gain.is_shown) == (3, False)
    assert mean_gain([([0.51, 0.52, 0.56], [0.50, 0.50, 0.50])], N) == gain


def test_a_single_recipe_has_the_prediction_interval_of_textbooks() -> None:
    """Mean .5, sd .01, three seeds: 4.30265 * .01 * sqrt(4 / 3) = .0496827."""
    (spread,) = spreads([[0.49, 0.50, 0.51]], N)
    assert (spread.mean, spread.sd) == (pytest.approx(0.5), pytest.approx(0.01))
    assert spread.high - spread.mean == pytest.approx(0.0496827, abs=1e-6)
    assert spread.mean - spread.low == pytest.approx(0.0496827, abs=1e-6)


def test_a_common_variance_counts_as_four_more_degrees() -> None:
    """Squares .0002 and .0008 over two equal units: common .00025, own .0001 of two degrees.

    (.0002 + 4 * .00025) / 6 = .0002 with six degrees, of which there are but four in all.
    """
    found = spreads([[0.49, 0.50, 0.51], [0.48, 0.50, 0.52]], N)
    assert found[0].sd ** 2 == pytest.approx(0.0002)
    assert found[0].high == pytest.approx(0.5 + 2.77645 * (0.0002 * 4 / 3) ** 0.5, abs=1e-6)


def test_equal_results_have_the_spread_of_rounding() -> None:
    (spread,) = spreads([[0.97, 0.97, 0.97]], 100)
    assert spread.sd == pytest.approx(0.01 / 12**0.5)
    assert spread.low < 0.97 < spread.high
    (gain,) = gains([([0.97] * 3, [0.97] * 3)], 100)
    assert (gain.difference, gain.p) == (0.0, pytest.approx(1.0))


def test_the_mean_gain_of_one_recipe_among_others_is_its_gain_among_them() -> None:
    pair = ([0.90, 0.92, 0.93], [0.89, 0.90, 0.92])
    noisy = ([0.80, 0.94, 0.73], [0.80, 0.61, 0.92])

    assert mean_gain([pair], N, others=[noisy]) == gains([pair, noisy], N)[0]
    assert mean_gain([pair], N, others=[noisy]).p > mean_gain([pair], N).p


def test_no_recipe_has_no_spread_and_no_gain() -> None:
    assert (spreads([], N), gains([], N)) == ([], [])


def test_an_interval_stays_within_zero_and_one() -> None:
    (spread,) = spreads([[1.0, 0.99]], 100)
    assert spread == Spread(mean=0.995, sd=spread.sd, low=spread.low, high=1.0, values=(1.0, 0.99))
    assert spread.low >= 0


def test_a_gain_turned_round_is_the_same_loss() -> None:
    pairs = [([0.90, 0.92, 0.93], [0.89, 0.90, 0.92]), ([0.80, 0.84, 0.83], [0.80, 0.81, 0.82])]
    for gain, loss in zip(gains(pairs, N), gains([(b, a) for a, b in pairs], N), strict=True):
        assert loss == Gain(
            difference=-gain.difference, low=-gain.high, high=-gain.low, p=gain.p, pairs=3
        )
