"""An interval of rounds is Student's for one more, and settling ends when it should."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from kdsearch.deploy.timing import (
    FLOOR,
    ONE_ROUND,
    Latency,
    Round,
    RoundLimits,
    latency_of_rounds,
    measure_rounds,
    time_block,
    time_pairs,
    warm_up,
)
from kdsearch.errors import CostError

GOOD = Latency(ms=1.0, low_ms=0.9, high_ms=1.2, spread_ms=0.1, contention=1.0)


def rounds(*times: float) -> list[Round]:
    return [Round(ms=ms, contention=1.0) for ms in times]


def ticking(*durations: float) -> tuple[Callable[[], float], Callable[[], object]]:
    """A clock that a run moves on by the next duration, the last one for ever."""
    now, left = [0.0], list(durations)

    def run() -> None:
        now[0] += left.pop(0) if len(left) > 1 else left[0]

    return lambda: now[0], run


def test_an_interval_is_students_for_one_more_round() -> None:
    """Logs -.1, 0, .1: sd .1; t at 97.5 % with 2 degrees of freedom 4.303; sqrt(1 + 1/3)."""
    found = latency_of_rounds(rounds(math.exp(-0.1), 1.0, math.exp(0.1)))
    half = 4.303 * 0.1 * math.sqrt(4 / 3)

    assert found.ms == pytest.approx(1.0)
    assert found.low_ms == pytest.approx(math.exp(-half))
    assert found.high_ms == pytest.approx(math.exp(half))
    assert found.spread_ms == pytest.approx(math.exp(0.05) - math.exp(-0.05))
    assert not found.is_narrow


def test_rounds_that_agree_leave_the_floor() -> None:
    found = latency_of_rounds(rounds(2.0, 2.0, 2.0))

    assert found.high_ms == pytest.approx(2 * (1 + FLOOR))
    assert found.low_ms == pytest.approx(2 / (1 + FLOOR))
    assert found.is_narrow


def test_slower_moments_of_the_machine_raise_the_upper_end_alone() -> None:
    steady = latency_of_rounds(rounds(2.0, 2.0, 2.0))
    found = latency_of_rounds([replace(r, pace=1.5) for r in rounds(2.0, 2.0, 2.0)])

    assert (found.ms, found.low_ms) == (steady.ms, steady.low_ms)
    assert found.high_ms == pytest.approx(1.5 * steady.high_ms)
    assert found.is_narrow  # of that, more rounds would change nothing


def test_an_interval_holds_19_of_20_next_rounds() -> None:
    """Log-normal rounds, sd 5 %, 2000 times: the share's own standard error is .5 %."""
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(2000):
        *known, after = np.exp(0.05 * rng.standard_normal(6))
        found = latency_of_rounds(rounds(*known))
        inside += found.low_ms <= after <= found.high_ms
    assert 0.93 < inside / 2000 < 0.97


def test_measuring_ends_when_the_interval_is_narrow() -> None:
    source = iter(rounds(1.0, 1.2, 1.0, 1.0, *[1.0] * 100))
    found = measure_rounds(
        lambda: next(source), RoundLimits(min_rounds=3, max_rounds=12, max_seconds=60)
    )
    taken = 104 - len(list(source))

    assert found.ms == 1.0
    assert 3 < taken <= 12


def test_settling_takes_at_least_so_many_rounds() -> None:
    source = iter(rounds(*[1.0] * 10))
    measure_rounds(lambda: next(source), RoundLimits(min_rounds=5, max_rounds=12, max_seconds=60))

    assert len(list(source)) == 5


def test_measuring_ends_at_the_limit_of_rounds_and_is_not_narrow() -> None:
    def noise() -> Iterator[Round]:
        while True:
            yield from rounds(1.0, 2.0)

    source = noise()
    found = measure_rounds(
        lambda: next(source), RoundLimits(min_rounds=3, max_rounds=6, max_seconds=60)
    )

    assert not found.is_narrow
    assert "not within 3 %" in str(found)


def test_what_is_over_the_limit_as_a_whole_need_not_be_narrow() -> None:
    """Logs 0, .02, 0: half of it is 4.303 * .01155 * sqrt(4/3) = .0574, so from .944 on."""
    limits = RoundLimits(min_rounds=4, max_rounds=12, max_seconds=60)
    taken = []
    for limit in (0.9, 0.98):
        source = iter(rounds(*[1.0, math.exp(0.02)] * 6))
        found = measure_rounds(lambda source=source: next(source), limits, limit)  # type: ignore[misc]
        taken.append((12 - len(list(source)), found.is_cut))

    assert taken[0] == (3, True)
    assert taken[1][0] > 4


@pytest.mark.parametrize(("limit", "taken"), [(1.3, 1), (1.2, 3), (0.9, 3), (0.7, 1)])
def test_one_round_decides_far_from_the_limit(limit: float, taken: int) -> None:
    """One round of 1 ms stands for .8 to 1.25 ms, three equal ones for .98 to 1.02."""
    limits = RoundLimits(min_rounds=4, max_rounds=12, max_seconds=60)
    source = iter(rounds(*[1.0] * 12))
    found = measure_rounds(lambda: next(source), limits, limit)

    assert 12 - len(list(source)) == taken
    assert found.is_cut
    assert found.decides(limit)
    assert found.low_ms == pytest.approx(1 / (ONE_ROUND if taken == 1 else 1 + FLOOR))
    assert found.high_ms == pytest.approx(ONE_ROUND if taken == 1 else 1 + FLOOR)


def test_infinity_takes_one_round() -> None:
    source = iter(rounds(1.0))

    assert measure_rounds(lambda: next(source), RoundLimits(), math.inf).is_cut


def test_settling_ends_with_its_time() -> None:
    source = iter(rounds(1.0, 2.0, 3.0, 4.0))
    measure_rounds(lambda: next(source), RoundLimits(min_rounds=3, max_rounds=12, max_seconds=0))

    assert len(list(source)) == 1


def test_a_latency_of_a_busy_machine_states_it() -> None:
    busy = replace(GOOD, contention=1.3)

    assert str(busy).endswith("; the machine was busy")
    assert "busy" not in str(GOOD)
    assert "busy" not in str(replace(GOOD, contention=None))


@pytest.mark.parametrize(
    "wrong",
    [
        {"ms": 0.0},
        {"ms": -1.0},
        {"ms": math.nan},
        {"high_ms": math.inf},
        {"low_ms": 0.0},
        {"low_ms": 1.1},
        {"high_ms": 0.95},
        {"spread_ms": -0.1},
        {"contention": 0.0},
        {"contention": math.nan},
        {"pace": 0.9},
        {"pace": math.nan},
    ],
)
def test_latency_is_a_positive_number_in_its_interval(wrong: dict[str, float]) -> None:
    with pytest.raises(CostError, match="is not a latency"):
        replace(GOOD, **wrong)


def test_a_block_is_the_lower_quartile_of_at_least_three_runs_after_one_untimed() -> None:
    """Of 3, 5, 9 that is 4; the first run, which finds the caches of whatever ran before, is 1."""
    clock, run = ticking(1.0, 5.0, 9.0, 3.0, 0.0)

    assert time_block(run, clock, seconds=0).seconds == 4.0
    assert clock() == 18.0


def test_a_ratio_is_of_blocks_side_by_side() -> None:
    """From the third pair on both take three times as long, and the ratio stays."""
    now, pairs, of_reference = [0.0], [1], [False]

    def candidate() -> None:
        pairs[0] += of_reference[0]
        of_reference[0] = False
        now[0] += 4.0 * (3 if pairs[0] > 2 else 1)

    def reference() -> None:
        of_reference[0] = True
        now[0] += 2.0 * (3 if pairs[0] > 2 else 1)

    ratio, _ = time_pairs(candidate, reference, lambda: now[0])

    assert pairs[0] > 2
    assert ratio == pytest.approx(2.0)


def test_warming_up_ends_when_two_blocks_agree() -> None:
    clock, run = ticking(*[64.0] * 4, *[32.0] * 4, *[16.0] * 4, *[8.0] * 4, 5.0)

    assert warm_up(run, clock) == 5.0


def test_measuring_leaves_the_callers_cores_as_they_are() -> None:
    from test_latency import SHAPE, network

    from kdsearch.deploy.latency import measure

    before = os.sched_getaffinity(0)
    measure(network(1), shape=SHAPE)

    assert os.sched_getaffinity(0) == before
