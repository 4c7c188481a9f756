"""Refits are trials outside the search: trained once each, and neither seen nor counted by it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from table_study import look_up, opened, run_search

from kdsearch.engines import local
from kdsearch.engines.dispatch import TrialQueue
from kdsearch.errors import SpecError
from kdsearch.hpo.pareto import knee
from kdsearch.hpo.statistics import Gain, Spread, gains, spreads
from kdsearch.report import tables
from kdsearch.report.artifacts import summarise, write_derived
from kdsearch.report.findings import about_refits
from kdsearch.report.marks import sort_out
from kdsearch.report.status import status
from kdsearch.report.verdict import verdict
from kdsearch.study.config import StudyConfig
from kdsearch.study.facts import Refit
from kdsearch.study.refit import (
    candidates,
    middle,
    missing,
    refits_left,
    refits_to_come,
    summarised,
    trained,
)
from kdsearch.study.study import OpenStudy, searched
from kdsearch.study.summary import Trainings
from kdsearch.study.trial_notes import Proposal, TrialOutcome

SPACE = """
student:
  family: {choice: {resnet: {depth: {int: [1, 20]}}}}
method:
  name: {choice: {dkd: {}, none: {}}}
train:
  lr: {float: [0.01, 1.0], log: true}
"""
REQUEST = StudyConfig(space=SPACE, budget_mflops=15.0, seed=5)
TEACHER = {"name": "t", "val": 0.9, "test": None, "flops": 1, "params": 1, "latency_ms": 1.0}
IMAGES = {"val": 400, "test": 300}


def evaluate(proposal: Proposal) -> TrialOutcome:
    """Look a trial up; a seed and a method move its accuracy by up to two points."""
    outcome = look_up(proposal)
    if outcome.val is None:
        return outcome
    name = f"{proposal.params.get('train.repeat', 0)} {proposal.params['method.name']}"
    moved = int(hashlib.sha256(name.encode()).hexdigest()[:4], 16) / 2**16
    return replace(outcome, val=outcome.val + 0.02 * moved, seconds=1.0)


def begun(path: Path, n_trials: int = 12) -> OpenStudy:
    with opened(path, REQUEST) as study:
        study.update_facts(teacher=TEACHER, images=IMAGES, trials=n_trials)
        run_search(study, [evaluate], n_trials=n_trials)
        return study


def refitted(
    study: OpenStudy, refit: Refit, run: Callable[[Proposal], TrialOutcome] = evaluate
) -> None:
    study.update_facts(refit=refit)
    local.run(TrialQueue(study, missing(study, refit), earlier=lambda _: None), [run])


@pytest.fixture(scope="module")
def study(fast_path: Path) -> OpenStudy:
    """Return a study with the refits of two candidates, two seeds each."""
    begun(fast_path / "refitted")
    with opened(fast_path / "refitted", REQUEST) as study:
        refitted(study, Refit(count=2, seeds=2))
        return study


def test_the_most_accurate_comes_first_then_the_knee_then_the_next(study: OpenStudy) -> None:
    front = study.front()
    assert len(front) > 3
    turn = knee([study.point(record) for record in front])
    assert turn not in (None, len(front) - 1, len(front) - 2)
    chosen = candidates(study, Refit(count=3))
    assert chosen == [front[-1], front[turn], front[-2]]
    assert candidates(study, Refit(count=100)) != front  # in another order
    assert len(candidates(study, Refit(count=100))) == len(front)


def test_each_candidate_is_trained_under_each_seed_and_so_is_each_control(study: OpenStudy) -> None:
    message = [r for r in study.records() if r.kind]
    for record in candidates(study, Refit(count=2)):
        mine = [r for r in message if r.refit_of == record.number]
        own = str(record.params["method.name"])
        wanted = {(own, 1), (own, 2), *((m, s) for m in ("none", "kd") for s in (1, 2))}
        assert {(r.params["method.name"], r.params["train.repeat"]) for r in mine} == wanted
        for refit in mine:
            is_own = refit.params["method.name"] == own
            assert refit.control_of == (None if is_own else record.number)
            assert refit.kind == ("refit" if is_own else "refitted control")
            student = {k: v for k, v in record.params.items() if not k.startswith("method.")}
            assert student.items() <= refit.params.items()
    assert all(r.draw is None for r in message)


def test_a_candidate_is_not_held_against_itself(study: OpenStudy) -> None:
    plain = next(r for r in study.complete() if r.params["method.name"] == "none")
    taught = next(r for r in study.complete() if r.params["method.name"] == "dkd")
    assert Refit(count=1).controls(plain) == ["kd"]
    assert Refit(count=1).controls(taught) == ["none", "kd"]


@pytest.mark.parametrize("seed_of_search", range(2))
def test_the_search_continues_as_if_there_were_no_refits(
    fast_path: Path, seed_of_search: int
) -> None:
    config = replace(REQUEST, seed=seed_of_search)
    message = []
    for name, refit in (("plain", None), ("between", Refit(count=3, seeds=2))):
        with opened(fast_path / f"{name}-{seed_of_search}", config) as study:
            run_search(study, [evaluate], n_trials=8)
            if refit is not None:
                refitted(study, refit)
            run_search(study, [evaluate], n_trials=16)
            message.append([(r.params, r.draw, r.val) for r in searched(study.records())])
            assert any(record.kind for record in study.records()) == (refit is not None)
    assert message[0] == message[1]


@pytest.mark.parametrize("until", [1, 4, 7])
def test_interrupted_refits_are_trained_once_each(fast_path: Path, until: int) -> None:
    path, refit = fast_path / f"interrupted-{until}", Refit(count=2, seeds=3)
    begun(path)
    names: list[str] = []

    def run(proposal: Proposal) -> TrialOutcome:
        if len(names) == until:
            raise KeyboardInterrupt
        names.append(proposal.digest)
        return evaluate(proposal)

    with opened(path, REQUEST) as study, pytest.raises(KeyboardInterrupt):
        refitted(study, refit, run)
    with opened(path, REQUEST) as study:
        assert [r.state for r in study.records()].count("interrupted") == 1
        until = -1
        refitted(study, refit, run)
        refitted(study, refit, run)
        assert len(names) == len(set(names)) == len(trained(study))
        assert len(searched(study.records())) == 12


def test_more_seeds_train_the_rest_alone(fast_path: Path) -> None:
    begun(fast_path / "more")
    with opened(fast_path / "more", REQUEST) as study:
        refitted(study, Refit(count=1, seeds=2))
        before = len(study.records())
        refitted(study, Refit(count=1, seeds=4))
        assert len(study.records()) == 2 * before - 12
        assert len(summarised(study)[0][0].trained.trials) == 4
        refitted(study, Refit(count=1, seeds=2))
        assert len(study.records()) == 2 * before - 12
        assert len(summarised(study)[0][0].trained.trials) == 2


def test_front_json_holds_candidates_their_spread_and_their_gains(study: OpenStudy) -> None:
    found, together = summarised(study)
    assert sorted(each.trial for each in found) == sorted(
        record.number for record in candidates(study, Refit(count=2))
    )
    records = {record.number: record for record in study.records()}
    assert found[0].trained.val.mean >= found[1].trained.val.mean
    sides = [side for each in found for side in (each.trained, *(c.trained for c in each.controls))]
    for side in sides:
        assert side.val.values == tuple(records[number].val for number in side.trials)
        assert side.seeds == (1, 2)
    assert [side.val for side in sides] == spreads([side.val.values for side in sides], 400)
    pairs = [
        (each.trained.val.values, c.trained.val.values) for each in found for c in each.controls
    ]
    assert [c.gain for each in found for c in each.controls] == gains(pairs, 400)
    assert {(entry.over, entry.candidates) for entry in together} <= {
        ("none", 1),
        ("none", 2),
        ("kd", 2),
    }
    assert all(side.test is None for side in sides)
    summary = summarise(study)
    assert summary.seconds.refit == sum(r.seconds for r in study.records() if r.kind) > 0
    assert summary.counts.complete == len(study.complete())
    assert summary.controls == ()


def test_what_has_no_second_seed_has_no_spread(fast_path: Path) -> None:
    begun(fast_path / "half")

    def run(proposal: Proposal) -> TrialOutcome:
        if proposal.params["train.repeat"] == 2:
            return TrialOutcome(state="failed", reason="out of memory")
        return evaluate(proposal)

    with opened(fast_path / "half", REQUEST) as study:
        refitted(study, Refit(count=1, seeds=2), run)
        assert summarised(study) == ((), ())
        message = list(about_refits(study, study.front()[-1].number))
        assert "failed" in message[0]
        assert "out of memory" in message[0]
        assert "was trained once" in message[-1]


def test_the_test_split_is_in_it_once_every_network_was_read(study: OpenStudy) -> None:
    numbers = [record.number for record in trained(study)]
    study.update_facts(test={str(number): 0.7 + number / 1000 for number in numbers[1:]})
    assert all(each.trained.test is None for each in summarised(study)[0])
    study.update_facts(test={str(number): 0.7 + number / 1000 for number in numbers})
    for each in summarised(study)[0]:
        assert each.trained.test is not None
        assert each.trained.test.values == tuple(0.7 + n / 1000 for n in each.trained.trials)
        assert all(control.test_gain is not None for control in each.controls)
    study.update_facts(test={})


def test_reports_show_the_candidates_and_what_they_gained(study: OpenStudy) -> None:
    first = summarised(study)[0][0]
    study.update_facts(best=first.trial, shipped=first.trained.trials[0])
    write_derived(study)
    text = (study.path / "report.md").read_text(encoding="utf-8")
    page = (study.path / "report.html").read_text(encoding="utf-8")
    for shown in (text, page):
        assert "Trials retrained with 2 seeds" in shown
        assert (
            f"{100 * first.trained.val.mean:.2f} \u00b1 {100 * first.trained.val.sd:.2f}" in shown
        )
        assert "mean of 2" in shown
        assert "has a control" not in shown
    assert f"refit of trial {first.trial}" in page
    assert "--refit 2 --seeds 2" in text.rpartition("kdsearch run")[2]
    assert "--refit-epochs" not in text
    assert summarise(study).candidates[0].shipped == first.trained.trials[0]
    message = list(about_refits(study, first.trial))
    assert f"{100 * first.trained.val.mean:.2f} %" in message[0]
    assert f"trial {first.trained.trials[0]}" in message[0]
    assert any("istillation" in line and " p " in line for line in message)


def test_status_names_the_trial_whose_refit_is_shipped(fast_path: Path) -> None:
    begun(fast_path / "shipped")
    with opened(fast_path / "shipped", REQUEST) as study:
        refitted(study, Refit(count=2, seeds=2))
        first = status(study.path).best
        shipped = trained(study)[-1]
        study.update_facts(best=study.front()[0].number, shipped=shipped.number, trials=12)
        then = status(study.path).best
    assert first is not None
    assert then is not None
    assert (first.trial, then.trial) == (study.front()[-1].number, shipped.number)
    assert then.val == shipped.val


def test_the_median_is_shipped_of_two_the_lower() -> None:
    spread = Spread(mean=0.9, sd=0.01, low=0.8, high=1.0, values=(0.93, 0.91, 0.92))
    three = Trainings(method="kd", trials=(7, 8, 9), seeds=(1, 2, 3), val=spread, test=None)
    assert middle(three) == 9
    two = replace(three, trials=(7, 8), val=replace(spread, values=(0.93, 0.91)))
    assert middle(two) == 8


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"count": -1}, "--refit -1: expected"),
        ({"count": 3, "seeds": 1}, "--seeds 1: one training has no spread; give --seeds 3"),
        ({"count": 3, "seeds": 0}, "--seeds 0"),
        ({"count": 3, "epochs": 0}, "--refit-epochs 0"),
    ],
)
def test_what_cannot_be_refitted_raises_with_what_can(given: dict[str, int], expected: str) -> None:
    with pytest.raises(SpecError, match=expected):
        Refit(**given)


def test_a_gain_that_is_shown_is_one_whose_interval_leaves_out_nought() -> None:
    (gain,) = gains([([0.91, 0.92, 0.93], [0.88, 0.90, 0.89])], 1_000)
    assert isinstance(gain, Gain)
    assert gain.is_shown == (gain.low > 0) == (gain.p < 0.05)


def test_figures_show_averages_and_no_refit_as_a_trial_of_the_search(study: OpenStudy) -> None:
    """A control ships here: its mean is ringed, at the candidate's cost, joined to its mean."""
    first = summarised(study)[0][0]
    ships = first.controls[0].trained
    study.update_facts(best=first.trial, shipped=ships.trials[1])
    summary = summarise(study)
    marks = sort_out(summary, study.records())

    assert summary.best_recipe() == ships
    assert summary.to_ship() == ships.trials[1]
    means = [each.trained.val.mean for each in summary.candidates]
    assert [mark.val for mark in marks.refits] == means
    assert [mark.error for mark in marks.refits] == [e.trained.val.sd for e in summary.candidates]
    beside = [c.trained.val.mean for each in summary.candidates for c in each.controls]
    assert [mark.val for mark in marks.controls] == beside
    (ringed,) = marks.best
    assert ringed.val == ships.val.mean
    assert ringed.costs == next(m.costs for m in marks.front if m.trial == first.trial)
    outside = {record.number for record in study.records() if record.kind}
    assert not outside & {mark.trial for mark in (*marks.front, *marks.dominated)}
    joined = {(mark.val, to.val) for mark, to in marks.links}
    assert (ships.val.mean, first.trained.val.mean) in joined
    assert len(marks.links) == len(means) + len(beside)


def test_an_exported_control_is_reported(study: OpenStudy) -> None:
    first = summarised(study)[0][0]
    ships = next(c.trained for c in first.controls if c.trained.method == "kd")
    study.update_facts(best=first.trial, shipped=ships.trials[0])
    message = list(about_refits(study, first.trial))
    assert f"Trial {first.trial}, its student with plain KD at its defaults: " in message[0]
    assert f"{100 * ships.val.mean:.2f} %" in message[0]
    assert f"trial {ships.trials[0]}" in message[0]
    assert any("is not shipped" in line for line in message)
    summary = summarise(study)
    costly = replace(summary, teacher=replace(summary.teacher, flops=10**12))
    expected = verdict(costly, study.records()).replace("\u00a0", " ")
    assert f"Ship trial {ships.trials[0]}," in expected
    assert f"(by kd; trial {first.trial} of the front)" in expected
    (row,) = (row for row in tables.candidates(summary).rows if "to ship" in row[0])
    assert row[0] == "its control, kd, to ship"


def test_the_cost_of_refits_is_announced_before_the_search_and_before_they_begin(
    fast_path: Path,
) -> None:
    """3 candidates x 1000 seeds x 3 are 9000 at most, of 10 epochs as by default."""
    begun(fast_path / "foretold")
    with opened(fast_path / "foretold", REQUEST) as study:
        assert list(refits_to_come(study, 12)) == list(refits_left(study)) == []
        study.update_facts(refit=Refit(count=3, seeds=1000))
        (line,) = refits_to_come(study, 12)
        assert "up to 9,000 refits, 90,000 epochs: 3 candidates x 1,000 seeds x 3" in line
        (line,) = refits_to_come(study, 2)  # a front has no more than there are trials
        assert "up to 6,000 refits, 60,000 epochs: 2 candidates" in line

        proposal = Refit(count=2, seeds=2, epochs=7)
        study.update_facts(refit=proposal)
        total = len(list(missing(study, proposal)))
        (line,) = refits_left(study)
        assert f"Refits begin: {total} trainings, {7 * total} epochs, of trials " in line
        refitted(study, proposal)
        (line,) = refits_left(study)
        assert line.endswith(f"; {total} of them are there already")
