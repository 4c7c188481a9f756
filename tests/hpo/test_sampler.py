"""A trial is drawn from its seed and from those before it, and only what it has is drawn."""

from __future__ import annotations

from functools import partial

import optuna
import pytest
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from kdsearch.hpo.sampler import FAILURE, GroupedTPE, _most_telling, suggest
from kdsearch.space import parse_space

SPACE = parse_space(
    """
family:
  choice:
    resnet: {depth: {int: [1, 20]}, width: {float: [0.25, 1.0], log: true}}
    vit: {heads: {int: [2, 8], step: 2}, bias: {choice: [true, false]}}
lr: {float: [0.1, 0.5], step: 0.1}
fixed: {int: [3, 3]}
epochs: 10
"""
)


@pytest.fixture
def study() -> optuna.Study:
    """Return a study of 12 trials, two more than the sampler draws at random."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    for seed in range(12):
        trial = drawn(study, seed)
        study.tell(trial, [float(trial.params["lr"]), float(seed)])
    return study


def drawn(
    study: optuna.Study, seed: int, *, is_beside: bool = False, learns_floor: bool = True
) -> optuna.Trial:
    study.sampler = GroupedTPE(SPACE, seed=seed, is_beside=is_beside, learns_floor=learns_floor)
    trial = study.ask()
    SPACE.walk(partial(suggest, trial))
    return trial


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """List what TPE is asked to draw together."""
    asked: list[dict[str, object]] = []
    real = TPESampler.sample_relative

    def watched(self, study, trial, search_space):
        asked.append(search_space)
        return real(self, study, trial, search_space)

    monkeypatch.setattr(TPESampler, "sample_relative", watched)
    return asked


def test_the_groups_of_a_trial_are_drawn_once_each_as_they_are_suggested(
    study: optuna.Study, groups: list[dict[str, object]]
) -> None:
    for seed in range(100, 104):
        groups.clear()
        trial = drawn(study, seed)
        owned = ["depth", "width"] if trial.params["family"] == "resnet" else ["heads", "bias"]
        prefix = trial.params["family"]
        together = [["family", "lr"], [f"{prefix}.{name}" for name in owned]]
        assert [list(group) for group in groups] == together
        for group in groups:
            assert group == {name: trial.distributions[name] for name in group}
        assert trial.params["fixed"] == 3


def test_a_seed_and_the_trials_before_decide_a_trial(study: optuna.Study) -> None:
    first = drawn(study, 7)
    study.tell(first, state=TrialState.FAIL)
    assert drawn(study, 7).params == first.params
    assert any(drawn(study, seed).params != first.params for seed in range(8, 12))


def test_what_did_well_is_drawn_more_often(study: optuna.Study) -> None:
    """The trials of the fixture score by `lr`; the second objective says nothing about it."""
    rates = [float(drawn(study, seed).params["lr"]) for seed in range(200, 240)]
    assert sum(rates) / len(rates) > 0.35 > 0.3  # 0.3 is the mean of the range


def test_beside_running_trials_a_trial_keeps_away_from_them(study: optuna.Study) -> None:
    """With one seed, those that do not know of each other would be the same."""
    first = drawn(study, 7, is_beside=True)
    others = [drawn(study, 7, is_beside=True).params for _ in range(5)]
    assert any(other != first.params for other in others)
    assert [drawn(study, 7).params for _ in range(2)] == [first.params] * 2


@pytest.mark.parametrize("learns_floor", [True, False])
def test_tpe_is_shown_the_lower_quartile_as_infeasible_and_no_control(
    learns_floor: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of accuracies .1 to .5 the quartile is .2, which .1 misses by .1; the control is the .9."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.add_trial(optuna.trial.create_trial(values=[0.9, 1.0]))
    for number in range(5):
        trial = drawn(study, number)
        study.tell(trial, [0.1 * (number + 1), 1.0])
    shown: list[dict[str, float]] = []

    def watched(self, study, trial, search_space):
        shown.extend(t.constraints for t in study._get_trials(states=(TrialState.COMPLETE,)))
        return {}

    monkeypatch.setattr(TPESampler, "sample_relative", watched)
    study.sampler = GroupedTPE(SPACE, seed=0, is_beside=False, learns_floor=learns_floor)
    study.ask().suggest_float("lr", 0.1, 0.5, step=0.1)
    low = {"accuracy": pytest.approx(0.1)} if learns_floor else {}
    assert shown == [low, {}, {}, {}, {}]


def test_a_learnt_floor_is_written_nowhere(study: optuna.Study) -> None:
    drawn(study, 7)
    assert not any(trial.constraints for trial in study.trials)


@pytest.mark.parametrize("learns_floor", [True, False])
def test_what_fails_is_drawn_less_and_what_was_interrupted_changes_nothing(
    learns_floor: bool,
) -> None:
    """Every vit fails. Told as infeasible it is avoided; one untold is as if it had never been."""

    def vits(*, are_told: bool) -> int:
        study = optuna.create_study(directions=["maximize", "minimize"])
        for seed in range(60):
            trial = drawn(study, seed, learns_floor=learns_floor)
            if trial.params["family"] == "resnet":
                study.tell(trial, [float(trial.params["lr"]), float(trial.params["resnet.depth"])])
                continue
            if are_told:
                trial.set_constraint(FAILURE, 1.0)
            study.tell(trial, state=TrialState.FAIL)
        return sum(trial.params["family"] == "vit" for trial in study.trials[20:])

    assert vits(are_told=True) < 0.6 * vits(are_told=False)


def test_a_sampler_that_forgets_an_interrupted_trial_draws_the_same(study: optuna.Study) -> None:
    before = drawn(study, 99)
    study.tell(before, state=TrialState.FAIL)
    assert drawn(study, 99).params == before.params


def test_of_very_many_trials_the_front_and_the_last_are_seen(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first nine trials, that of the least cost and the highest of each cost stay."""
    monkeypatch.setattr("kdsearch.hpo.sampler.MOST_SEEN", 3)
    ended = study.get_trials()
    seen = [trial.number for trial in _most_telling(ended)]
    front = [
        trial.number
        for trial in ended[:9]
        if not any(
            o.values[0] >= trial.values[0] and o.values[1] <= trial.values[1]
            for o in ended[:9]
            if o.number != trial.number
        )
    ]
    assert seen == [*front, 9, 10, 11]
    assert len(front) < 9
