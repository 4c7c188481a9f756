"""An enqueued candidate is tried in its turn; the front of an earlier study is enqueued."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from table_study import REQUEST, SPACE, look_up, opened, run_asked, run_to

from kdsearch.errors import SpecError, StudyError
from kdsearch.space import Params
from kdsearch.space_yaml import parse_space
from kdsearch.spec import Cost
from kdsearch.study.config import StudyConfig
from kdsearch.study.open import load_study
from kdsearch.study.study import searched
from kdsearch.study.trial_notes import TrialOutcome
from kdsearch.study.warm_start import MOST, enqueue, read_guess, recipes_of

TABLE = parse_space(SPACE)
STEPS = parse_space("student: {family: resnet, resnet: {width: {float: [0.25, 1.0], step: 0.25}}}")


def test_a_guess_may_leave_out_the_option_that_it_implies() -> None:
    proposal = {"student.family": "resnet", "student.depth": 4, "train.lr": 1}
    guess = read_guess(TABLE, proposal)
    assert guess == {"student.family": "resnet", "student.resnet.depth": 4, "train.lr": 1.0}
    assert isinstance(guess["train.lr"], float)
    assert read_guess(STEPS, {"student.width": 0.75}) == {"student.resnet.width": 0.75}
    assert read_guess(STEPS, {"student.family": "resnet"}) == {}


@pytest.mark.parametrize(
    ("proposal", "message"),
    [
        ({"student.familly": "vit"}, r"--set student.familly: unknown \(did you mean 'student.fam"),
        ({"x": 1}, "--set x: unknown; the space has student.family, method.name, train.lr, stud"),
        ({"student.family": "vitt"}, r"=vitt: expected resnet, vit \(did you mean 'vit'\?\)"),
        ({"train.lr": 2}, "--set train.lr=2: expected 0.01 to 1.0"),
        ({"train.lr": "fast"}, "--set train.lr=fast: expected 0.01 to 1.0"),
        ({"student.resnet.depth": 4}, "student.resnet.depth: give the option that owns it, too"),
        (
            {"student.family": "vit", "student.resnet.depth": 4},
            "student.resnet.depth: give the option that owns it, too",
        ),
        ({"method.name": "none"}, "--set method.name=none: the space fixes kd"),
        ({"train.lr": 2, "student.family": "x"}, "train.lr=2.*; --set student.family=x"),
    ],
)
def test_settings_outside_the_space_are_refused(proposal: Params, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_guess(TABLE, proposal)


def test_a_guess_between_two_steps_is_refused() -> None:
    with pytest.raises(SpecError, match=r"expected 0.25 to 1.0 in steps of 0.25"):
        read_guess(STEPS, {"student.width": 0.6})


def test_enqueued_guesses_are_tried_next_in_their_order(fast_path: Path) -> None:
    path = fast_path / "queue"
    with opened(path) as study:
        run_to(study, 2)
    first, trials = enqueue(path, {"student.family": "vit", "student.depth": 7, "train.lr": 0.5})
    assert trials == 3
    assert enqueue(path, {"student.family": "resnet"})[1] == 4
    with opened(path) as study:
        message = [run_asked(study, study.ask(), look_up) for _ in range(3)]
    assert message[0].params == {**first, "method.name": "kd"}
    assert message[1].params["student.family"] == "resnet"
    assert [record.draw for record in message] == [2, 3, 4]


def test_the_rest_of_a_guess_is_sampled_and_an_interrupted_guess_repeated(fast_path: Path) -> None:
    path = fast_path / "partial"
    with opened(path):
        pass
    enqueue(path, {"train.lr": 0.25})
    with opened(path) as study:
        proposal = study.ask()
    with opened(path) as study:
        again = study.ask()
    assert proposal.params["train.lr"] == 0.25
    assert (again.draw, again.params) == (proposal.draw, proposal.params)


def test_nothing_is_enqueued_while_a_study_runs_or_is_not_there(fast_path: Path) -> None:
    path = fast_path / "busy"
    with opened(path), pytest.raises(StudyError, match=r"is being run by process [0-9]+ on "):
        enqueue(path, {"train.lr": 0.25})
    assert load_study(path).facts.enqueued == {}
    with pytest.raises(StudyError, match="`kdsearch run --name nope` makes one"):
        enqueue(fast_path / "nope", {"train.lr": 0.25})


def test_the_front_of_an_earlier_study_comes_cheapest_first(fast_path: Path) -> None:
    with opened(fast_path / "old") as study:
        run_to(study, 12)
        front = [record.params for record in study.front()]
    new = replace(REQUEST, budget_mflops=5.0, from_study="old")
    assert 2 <= len(front) <= MOST
    drawn = [{k: v for k, v in params.items() if k != "method.name"} for params in front]
    assert recipes_of(new, fast_path) == drawn
    assert recipes_of(replace(new, from_study=str(fast_path / "old")), fast_path / "x") == drawn
    with opened(fast_path / "new", new) as study:
        study.enqueue(recipes_of(new, fast_path))
        for params in front:
            assert study.ask().params == params


def test_of_a_recipe_what_does_not_fit_is_left_to_the_sampler(fast_path: Path) -> None:
    with opened(fast_path / "wide") as study:
        run_to(study, 20)
        front = study.front()
    narrow = SPACE.replace("[0.01, 1.0]", "[0.0001, 0.001]").replace("vit:", "deit:")
    recipes = recipes_of(StudyConfig(space=narrow, from_study="wide"), fast_path)
    kept = [
        {k: v for k, v in r.params.items() if k in ("student.family", "student.resnet.depth")}
        for r in front
        if r.params["student.family"] == "resnet"
    ]
    assert kept
    assert [recipe for i, recipe in enumerate(kept) if recipe not in kept[:i]] == recipes


def test_of_a_long_front_both_ends_and_some_between_are_taken(fast_path: Path) -> None:
    with opened(fast_path / "long") as study:
        while len(study.front()) <= MOST:
            proposal = study.ask()
            n = len(study.records())  # dearer and more accurate each: all are on the front
            cost = Cost(flops=n * 1000, params=1)
            study.tell(proposal, TrialOutcome(state="complete", cost=cost, val=0.5 + n / 100))
        front = study.front()
    recipes = recipes_of(replace(REQUEST, from_study="long"), fast_path)
    assert len(recipes) == MOST < len(front)
    ends = [{k: v for k, v in r.params.items() if k != "method.name"} for r in front]
    assert (recipes[0], recipes[-1]) == (ends[0], ends[-1])


def test_a_study_to_start_from_must_be_there_and_have_something(fast_path: Path) -> None:
    with pytest.raises(StudyError, match="--from-study nope: there is no such study"):
        recipes_of(StudyConfig(space=SPACE, from_study="nope"), fast_path)
    with opened(fast_path / "empty"):
        pass
    with pytest.raises(StudyError, match="--from-study empty: that study has no complete trial"):
        recipes_of(StudyConfig(space=SPACE, from_study="empty"), fast_path)
    assert searched(load_study(fast_path / "empty").records()) == []
