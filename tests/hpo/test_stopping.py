"""A trial stops when it cannot reach the front, and never while it leads what costs no more."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsearch.hpo import pareto
from kdsearch.hpo.stopping import MIN_COMPLETE, Curve, Verdict, is_rung, judge

EPOCHS = 16
ENDS = np.linspace(0.3, 0.6, 12)


def curve(end: float, cost: float = 1.0, *, upto: int = EPOCHS, schedule: str = "") -> Curve:
    """Return a curve that stands at half of its end after one epoch and rises to it."""
    values = [end * (0.5 + 0.5 * (n - 1) / (EPOCHS - 1)) for n in range(1, upto + 1)]
    return Curve(
        values=tuple(values),
        epochs=EPOCHS,
        cost=cost,
        schedule=schedule,
        is_complete=upto == EPOCHS,
    )


def judged(
    trial: Curve, others: list[Curve], mode: str = "safe", *, floor: float | None = None
) -> Verdict:
    return judge(trial, others, mode=mode, images=2000, floor=floor)


COMPLETE = [curve(end, cost) for cost, end in enumerate(ENDS, start=1)]


@pytest.mark.parametrize("epochs", [1, 2, 7, 12, 16, 30, 49])
def test_rungs_are_powers_of_two_and_from_twelve_on_half_way_between_them(epochs: int) -> None:
    rungs = [epoch for epoch in range(1, epochs + 1) if is_rung(epoch, epochs)]
    assert rungs == [epoch for epoch in (1, 2, 4, 8, 12, 16, 24, 32, 48) if epoch < epochs]


def test_a_hopeless_trial_is_stopped_and_the_reason_has_the_numbers() -> None:
    verdict = judged(curve(0.3, 12.0, upto=4), COMPLETE)
    assert verdict.is_stop
    assert verdict.reason.startswith("epoch 4 of 16: 18.00% foretells ")
    assert "the chance to end above 60.00% is 0." in verdict.reason
    assert verdict.reason.endswith("%, of 10.75% needed")  # .43 of 4 epochs to the next, of 16


def test_a_trial_between_rungs_or_of_an_unstopped_study_goes_on() -> None:
    assert not judged(curve(0.3, 12.0, upto=3), COMPLETE).is_stop
    assert not judged(curve(0.3, 12.0, upto=4), COMPLETE, "off").is_stop


def test_the_cheapest_goes_on_however_bad_but_not_beside_an_equally_cheap_better_one() -> None:
    assert not judged(curve(0.05, 0.5, upto=8), COMPLETE).is_stop
    assert judged(curve(0.05, 1.0, upto=8), COMPLETE).is_stop


@pytest.mark.parametrize("mode", ["safe", "tight"])
def test_a_tie_with_the_leader_goes_on(mode: str) -> None:
    for cost, end in enumerate(ENDS, start=1):
        for upto in (1, 2, 4, 8):
            assert not judged(curve(end, cost, upto=upto), COMPLETE, mode).is_stop


def test_with_one_objective_accuracy_alone_decides() -> None:
    same_cost = [replace(other, cost=5.0) for other in COMPLETE]
    assert judged(curve(0.4, 5.0, upto=8), same_cost).is_stop
    assert not judged(curve(0.61, 5.0, upto=8), same_cost).is_stop


def test_what_is_no_number_stops_a_trial_and_is_not_learnt_from() -> None:
    lost = replace(curve(0.6, 2.0), values=(float("nan"),) * EPOCHS)
    assert judged(lost_at(8), COMPLETE).reason == "epoch 8 of 16: the accuracy is nan"
    trial = curve(0.3, 12.0, upto=4)
    assert judged(trial, [*COMPLETE, lost]) == judged(trial, COMPLETE)


def lost_at(epoch: int) -> Curve:
    return replace(curve(0.5, upto=epoch), values=(0.2,) * (epoch - 1) + (float("nan"),))


@pytest.mark.parametrize("mode", ["safe", "tight"])
def test_nothing_is_stopped_before_enough_are_complete(mode: str) -> None:
    trial = curve(0.1, 12.0, upto=8)
    few = [*COMPLETE[: MIN_COMPLETE - 1], *(curve(0.6, upto=8) for _ in range(20))]
    assert not judged(trial, few, mode).is_stop
    assert judged(trial, COMPLETE[:MIN_COMPLETE], mode).is_stop


def test_another_schedule_foretells_nothing_but_its_ends_count() -> None:
    """Here the others rise late: by their curves the trial would be far ahead."""
    other = [replace(o, schedule="flat", values=(*[0.01] * 15, o.values[-1])) for o in COMPLETE]
    trial = curve(0.3, 12.0, upto=8)
    assert judged(trial, other).reason.endswith(
        "nothing complete that costs no more is to be beaten"
    )
    known = [curve(0.2 + end / 10, cost) for cost, end in enumerate(ENDS, start=1)]
    assert judged(trial, [*other, *known]) == judged(trial, known)
    ahead = curve(0.31, 11.0)
    assert "to end above 60.00%" in judged(trial, [*other, *known, ahead]).reason


def test_a_schedule_with_few_complete_goes_by_a_margin_from_a_fourth_of_the_epochs_on() -> None:
    others = [*(replace(o, schedule="flat") for o in COMPLETE), curve(0.5)]
    far = curve(0.2, upto=4)
    assert judged(far, others).is_stop
    assert "margin" in judged(far, others).reason
    assert not judged(curve(0.2, upto=2), others).is_stop
    assert not judged(curve(0.49, upto=4), others).is_stop  # 0.6 points behind, 2.9 are noise


def test_what_is_no_rival_foretells_and_is_not_to_be_beaten() -> None:
    """An earlier study, say: a trial that no one of this study beats goes on."""
    prior = [replace(other, is_rival=False) for other in COMPLETE]
    trial = curve(0.3, 12.0, upto=4)
    assert not judged(trial, prior).is_stop
    assert judged(trial, [*prior, curve(0.5)]).is_stop


def test_a_tight_study_keeps_whole_fronts_of_a_third() -> None:
    """Six that cost the same: fronts of one each, the best two of six are kept."""
    beside = [curve(end, 5.0, upto=4) for end in (0.30, 0.32, 0.34, 0.36, 0.38)]
    complete = [curve(0.6, 9.0, schedule="flat") for _ in range(MIN_COMPLETE)]
    assert judged(curve(0.35, 5.0, upto=4), [*beside, *complete], "tight").is_stop
    assert not judged(curve(0.37, 5.0, upto=4), [*beside, *complete], "tight").is_stop
    assert not judged(curve(0.35, 5.0, upto=4), [*beside, *complete]).is_stop


def test_the_noise_of_the_images_keeps_what_a_perfect_fit_would_stop() -> None:
    trial = curve(0.59, 12.0, upto=8)
    assert judge(trial, COMPLETE, mode="safe", images=10**8).is_stop
    assert not judge(trial, COMPLETE, mode="safe", images=200).is_stop


costs = st.integers(1, 30).map(float)
rates = st.floats(0.05, 0.95)


@st.composite
def ordered_tables(draw: st.DrawFn) -> list[Curve]:
    """Return noise-free curves that rise and never cross: a growing map of the end each epoch."""
    shares = sorted(draw(st.lists(st.floats(0.05, 1.0), min_size=EPOCHS, max_size=EPOCHS)))
    powers = draw(st.floats(0.3, 3.0))
    students = draw(st.lists(st.tuples(rates, costs), min_size=9, max_size=40))
    return [
        Curve(
            values=(*(share * end**powers * end for share in shares[:-1]), end),
            epochs=EPOCHS,
            cost=cost,
        )
        for end, cost in students
    ]


@given(ordered_tables(), st.sampled_from(["safe", "tight"]), st.none() | rates)
def test_the_true_front_of_ordered_curves_is_never_stopped(
    table: list[Curve], mode: str, floor: float | None
) -> None:
    """With a floor: the front of those that end above it."""
    ended: list[Curve] = []
    stopped: list[int] = []
    for i, whole in enumerate(table):
        for epoch in (1, 2, 4, 8, 12):
            trial = replace(whole, values=whole.values[:epoch])
            if judged(trial, ended, mode, floor=floor).is_stop:
                ended.append(trial)
                stopped.append(i)
                break
        else:
            ended.append(replace(whole, is_complete=True))
    able = [i for i, whole in enumerate(table) if floor is None or whole.values[-1] >= floor]
    front = pareto.front([(table[i].values[-1], table[i].cost) for i in able])
    assert {able[i] for i in front}.isdisjoint(stopped)


@given(
    st.lists(st.tuples(rates, costs, st.sampled_from([2, 4, 8, EPOCHS])), max_size=30),
    st.randoms(use_true_random=False),
    st.sampled_from(["safe", "tight"]),
)
def test_the_order_in_which_trials_ended_decides_nothing(
    ended: list[tuple[float, float, int]], chance: object, mode: str
) -> None:
    others = [*COMPLETE, *(curve(end, cost, upto=upto) for end, cost, upto in ended)]
    shuffled = others.copy()
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    trial = curve(0.45, 11.0, upto=4)
    assert judged(trial, others, mode) == judged(trial, shuffled, mode)


def test_where_every_trial_ends_perfect_none_is_stopped() -> None:
    """No residual, and no noise by the binomial variance: that of one more error is taken."""
    perfect = [
        replace(curve(end, cost), values=(*curve(end).values[:-1], 1.0))
        for cost, end in enumerate(ENDS, start=1)
    ]
    assert not judged(curve(0.3, 12.0, upto=4), perfect).is_stop
    alike = [replace(perfect[0], cost=5.0)] * 9
    assert not judged(curve(0.29, 5.0, upto=4), alike).is_stop


def test_what_can_hardly_reach_the_floor_stops_though_it_is_the_cheapest() -> None:
    """The trial stands where the second did, which ended at .33; those above .55 are dear."""
    trial = curve(ENDS[1], 0.5, upto=8)
    assert not judged(trial, COMPLETE).is_stop
    assert not judged(trial, COMPLETE, floor=0.31).is_stop
    verdict = judged(trial, COMPLETE, floor=0.55)
    assert verdict.is_stop
    assert "end above 55.00%" in verdict.reason


def test_below_the_floor_nothing_stops_where_none_as_good_was_seen_to_fail() -> None:
    trial = curve(0.5, 0.5, upto=8)
    assert not judged(trial, [o for o in COMPLETE if o.values[-1] >= 0.3], floor=0.2).is_stop


def test_what_ended_below_the_floor_is_no_rival() -> None:
    trial = curve(0.40, 5.0, upto=8)
    cheap = [curve(end, 1.0) for end in (0.42, 0.44, 0.46)]
    dear = [curve(0.5 + n / 100, 9.0) for n in range(8)]
    assert "end above 46.00%" in judged(trial, [*cheap, *dear]).reason
    assert "end above 48.00%" in judged(trial, [*cheap, *dear], floor=0.48).reason
