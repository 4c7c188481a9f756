"""Rankings of parameters: for metric and cost, among all trials and within a family."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial

from kdsearch.study.importances import RESAMPLES, rankings
from kdsearch.study.ranking import COST, METRIC, Ranking, shares


def study(count: int, families: tuple[str, ...] = ("a", "b")) -> object:
    """Return a study in which lr sets the metric, the width of a its cost, that of b nothing."""
    rng = random.Random(1)
    trials = []
    for number in range(count):
        family = families[number % len(families)]
        params = {"student.family": family, "train.lr": rng.random(), "train.noise": rng.random()}
        own = {f"student.{family}.{knob}": rng.random() for knob in ("width", "depth")}
        cost = own[f"student.{family}.width"] if family == "a" else rng.random()
        distributions = {
            "student.family": CategoricalDistribution(families),
            **{name: FloatDistribution(0, 1) for name in (*own, "train.lr", "train.noise")},
        }
        trials.append(
            create_trial(
                state=TrialState.COMPLETE,
                params={**params, **own},
                distributions=distributions,
                values=[params["train.lr"], cost],
            )
        )
    return SimpleNamespace(store=SimpleNamespace(trials=lambda: trials))


@pytest.fixture(scope="module")
def found() -> tuple[Ranking, ...]:
    return rankings(study(120))  # type: ignore[arg-type]


def test_what_sets_the_metric_is_first_and_shares_add_up(found: tuple[Ranking, ...]) -> None:
    common = next(each for each in found if each.of == METRIC and not each.option)
    assert common.values[0].name == "train.lr"
    assert common.values[0].share > 0.8
    own = {f"student.{family}.{knob}" for family in "ab" for knob in ("width", "depth")}
    names = {item.name for item in common.values}
    assert names == {"student.family", "train.lr", "train.noise", *own}
    assert common.trials == 120
    for each in found:
        assert sum(item.share for item in each.values) == pytest.approx(1)
        assert list(each.values) == sorted(each.values, key=lambda item: -item.share)
    assert shares(found) == {item.name: item.share for item in common.values}


def test_knobs_of_a_family_are_ranked_inside_it(found: tuple[Ranking, ...]) -> None:
    inside = next(each for each in found if each.of == COST and each.option == "a")
    assert [item.name for item in inside.values] == ["student.a.width", "student.a.depth"]
    assert inside.trials == 60
    assert inside.values[0].share > 0.8


def test_an_interval_holds_most_resamples(found: tuple[Ranking, ...]) -> None:
    for each in found:
        for item in each.values:
            assert 0 <= item.low <= item.high <= 1
    sure = next(each for each in found if each.of == METRIC and not each.option)
    assert sure.values[0].low > sure.values[1].high
    assert RESAMPLES >= 20


def test_few_trials_have_no_ranking() -> None:
    assert rankings(study(29)) == ()  # type: ignore[arg-type]
    options = {each.option for each in rankings(study(58))}  # type: ignore[arg-type]
    assert options == {""}  # 29 of each family
