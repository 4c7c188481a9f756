"""A sampler picks a trial from its seed and the trials before it, group by group."""

from __future__ import annotations

from functools import partial

import optuna
import pytest
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from kdsearch.hpo.sampler import FAILURE, GroupedTPE, _last_and_front, suggest
from kdsearch.space_yaml import parse_space

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
    """Return a study of 12 trials, two more than the sampler picks at random."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    for seed in range(12):
        trial = sample(study, seed)
        study.tell(trial, [float(trial.params["lr"]), float(seed)])
    return study


def sample(
    study: optuna.Study, seed: int, *, has_running: bool = False, learns_floor: bool = True
) -> optuna.Trial:
    study.sampler = GroupedTPE(SPACE, seed=seed, has_running=has_running, learns_floor=learns_floor)
    trial = study.ask()
    SPACE.walk(partial(suggest, trial))
    return trial


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """List the groups that TPE samples."""
    sampled: list[dict[str, object]] = []
    real = TPESampler.sample_relative

    def recorded(self, study, trial, search_space):
        sampled.append(search_space)
        return real(self, study, trial, search_space)

    monkeypatch.setattr(TPESampler, "sample_relative", recorded)
    return sampled


def test_each_group_of_a_trial_is_sampled_once(
    study: optuna.Study, groups: list[dict[str, object]]
) -> None:
    for seed in range(100, 104):
        groups.clear()
        trial = sample(study, seed)
        owned = ["depth", "width"] if trial.params["family"] == "resnet" else ["heads", "bias"]
        prefix = trial.params["family"]
        together = [["family", "lr"], [f"{prefix}.{name}" for name in owned]]
        assert [list(group) for group in groups] == together
        for group in groups:
            assert group == {name: trial.distributions[name] for name in group}
        assert trial.params["fixed"] == 3


def test_the_first_trials_are_random_until_ten_ended_and_four_were_trained(
    groups: list[dict[str, object]],
) -> None:
    study = optuna.create_study(directions=["maximize", "minimize"])
    for seed in range(3):
        study.tell(sample(study, seed), [0.5, 1.0])
    for seed in range(3, 40):
        rejected = sample(study, seed)
        rejected.set_constraint("flops", 0.5)
        study.tell(rejected, state=TrialState.PRUNED)
    assert not groups
    study.tell(sample(study, 40), [0.5, 1.0])
    assert not groups
    sample(study, 41)
    assert groups


def test_a_seed_and_the_trials_before_decide_a_trial(study: optuna.Study) -> None:
    first = sample(study, 7)
    study.tell(first, state=TrialState.FAIL)
    assert sample(study, 7).params == first.params
    assert any(sample(study, seed).params != first.params for seed in range(8, 12))


def test_values_of_good_trials_are_sampled_more_often(study: optuna.Study) -> None:
    """The trials of the fixture score by `lr`; the second objective is independent of it."""
    rates = [float(sample(study, seed).params["lr"]) for seed in range(200, 240)]
    assert sum(rates) / len(rates) > 0.35 > 0.3  # 0.3 is the mean of the range


def test_a_trial_keeps_away_from_running_trials(study: optuna.Study) -> None:
    """With one seed, trials that ignored each other would be equal."""
    first = sample(study, 7, has_running=True)
    others = [sample(study, 7, has_running=True).params for _ in range(5)]
    assert any(other != first.params for other in others)
    assert [sample(study, 7).params for _ in range(2)] == [first.params] * 2


@pytest.mark.parametrize("learns_floor", [True, False])
def test_tpe_reads_the_lower_quartile_as_infeasible_and_no_control(
    learns_floor: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The quartile of the accuracies is .2, which .1 misses by .1; the control is the .9."""
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.add_trial(optuna.trial.create_trial(values=[0.9, 1.0]))
    for number, val in enumerate([0.1, *3 * [0.2], *6 * [0.5]]):
        study.tell(sample(study, number), [val, 1.0])
    shown: list[dict[str, float]] = []

    def recorded(self, study, trial, search_space):
        shown.extend(t.constraints for t in study._get_trials(states=(TrialState.COMPLETE,)))
        return {"lr": 0.1}

    monkeypatch.setattr(TPESampler, "sample_relative", recorded)
    study.sampler = GroupedTPE(SPACE, seed=0, has_running=False, learns_floor=learns_floor)
    study.ask().suggest_float("lr", 0.1, 0.5, step=0.1)
    low = {"accuracy": pytest.approx(0.1)} if learns_floor else {}
    assert shown == [low, *9 * [{}]]


def test_a_learnt_floor_is_not_stored(study: optuna.Study) -> None:
    sample(study, 7)
    assert not any(trial.constraints for trial in study.trials)


@pytest.mark.parametrize("learns_floor", [True, False])
def test_failed_trials_are_avoided_and_interrupted_ones_ignored(
    learns_floor: bool,
) -> None:
    """Every vit fails: marked as a failure it is avoided, else it counts as interrupted."""

    def vits(*, are_marked: bool) -> int:
        study = optuna.create_study(directions=["maximize", "minimize"])
        for seed in range(60):
            trial = sample(study, seed, learns_floor=learns_floor)
            if trial.params["family"] == "resnet":
                study.tell(trial, [float(trial.params["lr"]), float(trial.params["resnet.depth"])])
                continue
            if are_marked:
                trial.set_constraint(FAILURE, 1.0)
            study.tell(trial, state=TrialState.FAIL)
        return sum(trial.params["family"] == "vit" for trial in study.trials[20:])

    assert vits(are_marked=True) < 0.6 * vits(are_marked=False)


def test_an_interrupted_trial_is_sampled_again(study: optuna.Study) -> None:
    before = sample(study, 99)
    study.tell(before, state=TrialState.FAIL)
    assert sample(study, 99).params == before.params


def test_of_very_many_trials_tpe_reads_the_last_and_the_front(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first nine trials those on the front stay."""
    monkeypatch.setattr("kdsearch.hpo.sampler.MAX_TRIALS", 3)
    ended = study.get_trials()
    read = [trial.number for trial in _last_and_front(ended)]
    front = [
        trial.number
        for trial in ended[:9]
        if not any(
            o.values[0] >= trial.values[0] and o.values[1] <= trial.values[1]
            for o in ended[:9]
            if o.number != trial.number
        )
    ]
    assert read == [*front, 9, 10, 11]
    assert len(front) < 9
