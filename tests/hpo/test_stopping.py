"""A trial that cannot reach the front is pruned; one that leads at its cost never is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsearch.hpo import pareto
from kdsearch.hpo.stopping import MIN_COMPLETE, Curve, CurvePruner, Decision, is_rung

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


def decide(trial: Curve, others: list[Curve], mode: str = "safe", images: int = 2000) -> Decision:
    return CurvePruner(mode=mode, images=images).prune(trial, others)


COMPLETE = [curve(end, cost) for cost, end in enumerate(ENDS, start=1)]


@pytest.mark.parametrize("epochs", [1, 2, 7, 12, 16, 30, 49])
def test_rungs_are_powers_of_two_and_from_twelve_on_half_way_between_them(epochs: int) -> None:
    rungs = [epoch for epoch in range(1, epochs + 1) if is_rung(epoch, epochs)]
    assert rungs == [epoch for epoch in (1, 2, 4, 8, 12, 16, 24, 32, 48) if epoch < epochs]


def test_a_hopeless_trial_is_pruned_and_the_reason_has_the_numbers() -> None:
    decision = decide(curve(0.3, 12.0, upto=4), COMPLETE)
    assert decision.should_prune
    assert decision.reason.startswith("epoch 4 of 16: 18.00% predicts ")
    assert "the chance to end above 60.00% is 0." in decision.reason
    assert decision.reason.endswith("%, of 10.75% needed")  # .43 of 4 epochs to the next, of 16


def test_no_trial_is_pruned_between_rungs_or_in_mode_off() -> None:
    assert not decide(curve(0.3, 12.0, upto=3), COMPLETE).should_prune
    assert not decide(curve(0.3, 12.0, upto=4), COMPLETE, "off").should_prune


def test_the_cheapest_trial_continues_unless_another_of_its_cost_is_better() -> None:
    assert not decide(curve(0.05, 0.5, upto=8), COMPLETE).should_prune
    assert decide(curve(0.05, 1.0, upto=8), COMPLETE).should_prune


@pytest.mark.parametrize("mode", ["safe", "tight"])
def test_a_tie_with_the_leader_continues(mode: str) -> None:
    for cost, end in enumerate(ENDS, start=1):
        for upto in (1, 2, 4, 8):
            assert not decide(curve(end, cost, upto=upto), COMPLETE, mode).should_prune


@pytest.mark.parametrize("mode", ["safe", "tight"])
def test_a_trial_continues_while_its_metric_is_0(mode: str) -> None:
    """As a detector's before its first box is right; one that has left 0 is judged as any other."""
    at_0 = replace(curve(0.3, 12.0, upto=4), values=(0.0,) * 4)
    assert not decide(at_0, COMPLETE, mode).should_prune
    assert "the metric is still 0" in decide(at_0, COMPLETE, mode).reason
    assert decide(replace(at_0, values=(0.0, 0.0, 0.0, 0.01)), COMPLETE, mode).should_prune
    assert decide(replace(at_0, values=(0.0, 0.01, 0.0, 0.0)), COMPLETE, mode).should_prune


def test_with_one_objective_accuracy_alone_decides() -> None:
    same_cost = [replace(other, cost=5.0) for other in COMPLETE]
    assert decide(curve(0.4, 5.0, upto=8), same_cost).should_prune
    assert not decide(curve(0.61, 5.0, upto=8), same_cost).should_prune


def test_a_trial_without_a_finite_value_is_pruned_and_ignored_by_others() -> None:
    lost = replace(curve(0.6, 2.0), values=(float("nan"),) * EPOCHS)
    assert decide(lost_at(8), COMPLETE).reason == "epoch 8 of 16: the value is nan"
    trial = curve(0.3, 12.0, upto=4)
    assert decide(trial, [*COMPLETE, lost]) == decide(trial, COMPLETE)


def lost_at(epoch: int) -> Curve:
    return replace(curve(0.5, upto=epoch), values=(0.2,) * (epoch - 1) + (float("nan"),))


@pytest.mark.parametrize("mode", ["safe", "tight"])
def test_no_trial_is_pruned_before_enough_are_complete(mode: str) -> None:
    trial = curve(0.1, 12.0, upto=8)
    few = [*COMPLETE[: MIN_COMPLETE - 1], *(curve(0.6, upto=8) for _ in range(20))]
    assert not decide(trial, few, mode).should_prune
    assert decide(trial, COMPLETE[:MIN_COMPLETE], mode).should_prune


def test_curves_of_another_schedule_predict_nothing_but_their_results_count() -> None:
    """Here the others rise late: by their curves the trial would be far ahead."""
    other = [replace(o, schedule="flat", values=(*[0.01] * 15, o.values[-1])) for o in COMPLETE]
    trial = curve(0.3, 12.0, upto=8)
    assert decide(trial, other).reason.endswith("it leads all trials of at most its cost")
    known = [curve(0.2 + end / 10, cost) for cost, end in enumerate(ENDS, start=1)]
    assert decide(trial, [*other, *known]) == decide(trial, known)
    ahead = curve(0.31, 11.0)
    assert "to end above 60.00%" in decide(trial, [*other, *known, ahead]).reason


def test_with_few_complete_peers_a_margin_decides_from_a_fourth_of_the_epochs() -> None:
    others = [*(replace(o, schedule="flat") for o in COMPLETE), curve(0.5)]
    far = curve(0.2, upto=4)
    assert decide(far, others).should_prune
    assert "margin" in decide(far, others).reason
    assert not decide(curve(0.2, upto=2), others).should_prune
    assert not decide(curve(0.49, upto=4), others).should_prune  # 0.6 points behind, 2.9 are noise


def test_a_curve_that_is_no_rival_serves_predictions_only() -> None:
    """An earlier study, say: a trial that leads its own study continues."""
    prior = [replace(other, is_rival=False) for other in COMPLETE]
    trial = curve(0.3, 12.0, upto=4)
    assert not decide(trial, prior).should_prune
    assert decide(trial, [*prior, curve(0.5)]).should_prune


def test_mode_tight_keeps_whole_fronts_of_a_third() -> None:
    """Six that cost the same: fronts of one each, the best two of six are kept."""
    rivals = [curve(end, 5.0, upto=4) for end in (0.30, 0.32, 0.34, 0.36, 0.38)]
    complete = [curve(0.6, 9.0, schedule="flat") for _ in range(MIN_COMPLETE)]
    assert decide(curve(0.35, 5.0, upto=4), [*rivals, *complete], "tight").should_prune
    assert not decide(curve(0.37, 5.0, upto=4), [*rivals, *complete], "tight").should_prune
    assert not decide(curve(0.35, 5.0, upto=4), [*rivals, *complete]).should_prune


def test_few_images_keep_a_trial_that_a_perfect_fit_would_prune() -> None:
    trial = curve(0.59, 12.0, upto=8)
    assert decide(trial, COMPLETE, images=10**8).should_prune
    assert not decide(trial, COMPLETE, images=200).should_prune


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


@given(ordered_tables(), st.sampled_from(["safe", "tight"]))
def test_the_true_front_of_ordered_curves_is_never_pruned(table: list[Curve], mode: str) -> None:
    ended: list[Curve] = []
    pruned: list[int] = []
    for i, whole in enumerate(table):
        for epoch in (1, 2, 4, 8, 12):
            trial = replace(whole, values=whole.values[:epoch])
            if decide(trial, ended, mode).should_prune:
                ended.append(trial)
                pruned.append(i)
                break
        else:
            ended.append(replace(whole, is_complete=True))
    assert set(pareto.front([(whole.values[-1], whole.cost) for whole in table])).isdisjoint(pruned)


@given(
    st.lists(st.tuples(rates, costs, st.sampled_from([2, 4, 8, EPOCHS])), max_size=30),
    st.randoms(use_true_random=False),
    st.sampled_from(["safe", "tight"]),
)
def test_the_order_of_the_other_trials_has_no_influence(
    ended: list[tuple[float, float, int]], chance: object, mode: str
) -> None:
    others = [*COMPLETE, *(curve(end, cost, upto=upto) for end, cost, upto in ended)]
    shuffled = others.copy()
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    trial = curve(0.45, 11.0, upto=4)
    assert decide(trial, others, mode) == decide(trial, shuffled, mode)


def test_where_every_trial_ends_perfect_none_is_pruned() -> None:
    """No residual, and no noise by the binomial variance: that of one more error is taken."""
    perfect = [
        replace(curve(end, cost), values=(*curve(end).values[:-1], 1.0))
        for cost, end in enumerate(ENDS, start=1)
    ]
    assert not decide(curve(0.3, 12.0, upto=4), perfect).should_prune
    alike = [replace(perfect[0], cost=5.0)] * 9
    assert not decide(curve(0.29, 5.0, upto=4), alike).should_prune
