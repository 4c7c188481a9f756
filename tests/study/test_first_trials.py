"""The first trials: plain KD for each family and optimiser, then the methods on the best one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from kdsearch.space import Params
from kdsearch.space_yaml import parse_space
from kdsearch.spec import TrialRecord
from kdsearch.study.config import StudyConfig
from kdsearch.study.facts import StudyFacts
from kdsearch.study.first_trials import first_trial, method_at_defaults

TEXT = """
student:
  family:
    choice:
      resnet: {width: {float: [0.25, 2.0], log: true}, depth: {int: [3, 15], default: 3}}
      mobilenet: {width: {float: [0.25, 2.0], log: true}, depth: {int: [5, 15]}}
      timm:resnet18:
method:
  name:
    choice:
      vitkd: {weight: {float: [0.1, 10.0], log: true}}
      kd: {alpha: {float: [0.1, 1.0], default: 0.9}, temperature: {float: [1.0, 16.0], log: true}}
      none:
train:
  epochs: 30
  optimizer:
    choice:
      muon: {lr: {float: [0.001, 0.1], log: true}}
      sgd: {lr: {float: [0.01, 1.0], default: 0.1}}
"""
SPACE = parse_space(TEXT)
KD = {"method.name": "kd", "method.kd.alpha": 0.9, "method.kd.temperature": 4.0}


def all_fit(params: Params) -> bool:
    return True


def first(
    place: int,
    records: Sequence[TrialRecord] = (),
    *,
    trials: int,
    text: str = TEXT,
    fits: Callable[[Params], bool] = all_fit,
) -> Params:
    config, facts = StudyConfig(space=text), StudyFacts(trials=trials)
    return first_trial(config, facts, place, records, fits)


def record(number: int, val: float, **params: object) -> TrialRecord:
    return TrialRecord(
        number=number,
        state="complete",
        val=val,
        draw=number,
        params=params,  # type: ignore[arg-type]
    )


def test_plain_kd_comes_first_with_the_widest_student_of_each_family_and_optimiser() -> None:
    trials = [first(place, trials=100) for place in range(6)]
    found = [(t["student.family"], t["train.optimizer"]) for t in trials]
    families = ["resnet", "mobilenet", "timm:resnet18"]
    assert found == [(f, o) for o in ("muon", "sgd") for f in families]
    assert trials[0] == {
        "student.family": "resnet",
        "student.resnet.share": 1.0,
        "student.resnet.depth": 3,
        **KD,
        "train.optimizer": "muon",
        "train.muon.lr": 0.01,
    }
    assert trials[4]["student.mobilenet.depth"] == 10
    assert trials[4]["train.sgd.lr"] == 0.1


def test_the_other_methods_follow_on_the_best_of_plain_kd() -> None:
    best = {
        "student.family": "mobilenet",
        "student.mobilenet.width": 0.7,
        "student.mobilenet.depth": 10,
        "train.optimizer": "sgd",
        "train.sgd.lr": 0.1,
    }
    other = {"method.name": "none"}
    records = [record(0, 0.5, **KD), record(1, 0.6, **best, **KD), record(2, 0.9, **best, **other)]
    assert first(6, records, trials=100) == {
        **best,
        "method.name": "vitkd",
        "method.vitkd.weight": 1.0,
    }
    assert first(7, records, trials=100) == {**best, **other}
    assert first(8, records, trials=100) == {}


def test_few_trials_are_half_families_and_half_methods() -> None:
    trials = [first(place, trials=4) for place in range(5)]
    assert [t.get("method.name") for t in trials] == [*("kd", "kd", "vitkd", "none", None)]
    assert first(0, trials=1) == trials[0]
    assert first(1, trials=1) == {}


def test_a_student_has_the_first_resolution_at_which_it_fits() -> None:
    text = (
        f"{TEXT.replace('method:', '  resolution: {choice: [128, 160, 96]}' + chr(10) + 'method:')}"
    )
    fitting = {("resnet", 96), ("timm:resnet18", 160), ("timm:resnet18", 96)}
    asked = []

    def fits(params: Params) -> bool:
        asked.append(params)
        return (params["student.family"], params["student.resolution"]) in fitting

    trials = [first(place, trials=100, text=text, fits=fits) for place in range(5)]
    found = [(t["student.family"], t["student.resolution"]) for t in trials[:4]]
    assert found == [("resnet", 96), ("timm:resnet18", 160)] * 2
    assert trials[4]["method.name"] == "vitkd"
    assert trials[4]["student.resolution"] == 96
    assert asked[0]["student.resnet.share"] == 1.0


def test_a_trial_that_was_rejected_or_failed_leaves_its_place_to_the_next() -> None:
    lost = [
        replace(record(0, 0.0, **KD), state="rejected"),
        replace(record(1, 0.0), state="failed"),
    ]
    families = [first(place, lost, trials=4).get("student.family") for place in (2, 3)]
    assert families == ["timm:resnet18", "resnet"]
    assert first(4, lost, trials=4)["method.name"] == "vitkd"
    assert first(6, lost, trials=4) == {}


def test_a_space_without_choices_begins_at_its_defaults() -> None:
    text = "student: {family: resnet, resnet: {width: {float: [0.5, 1.0]}}}"
    assert first(0, trials=20, text=text) == {"student.resnet.share": 1.0}
    assert first(1, trials=20, text=text) == {}
    objective = StudyConfig(space=text, data="objective")
    assert first_trial(objective, StudyFacts(), 0, [], all_fit) == {}


def test_the_places_of_enqueued_candidates_do_not_count() -> None:
    facts = StudyFacts(trials=4, enqueued={0: {"student.family": "resnet"}, 2: {"x": 1}})
    config = StudyConfig(space=TEXT)
    assert first_trial(config, facts, 1, [], all_fit) == first(0, trials=4)
    assert first_trial(config, facts, 3, [], all_fit) == first(1, trials=4)


def test_a_lost_candidate_that_was_enqueued_is_no_lost_first_trial() -> None:
    facts = StudyFacts(trials=4, enqueued={0: {"student.family": "resnet"}})
    config = StudyConfig(space=TEXT)
    lost = [replace(record(0, 0.0), state="rejected"), record(1, 0.5, **KD), record(2, 0.6, **KD)]
    third = first_trial(config, facts, 3, lost, all_fit)
    assert third["method.name"] == "vitkd"


def test_a_method_outside_the_space_has_its_own_defaults() -> None:
    assert method_at_defaults(SPACE, "kd") == KD
    assert method_at_defaults(SPACE, "dkd") == {"method.name": "dkd"}
