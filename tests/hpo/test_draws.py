"""Candidates over the budget are rejected before they are trials; samplers other than TPE."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from table_study import MAX_DEPTH, REQUEST, look_up, opened, run_asked, run_to

from kdsearch.__main__ import main
from kdsearch.engines import local
from kdsearch.engines.dispatch import TrialQueue, search
from kdsearch.errors import BudgetError, SpecError
from kdsearch.report.artifacts import summarise
from kdsearch.report.status import status
from kdsearch.report.verdict import verdict
from kdsearch.report.words import SPACE
from kdsearch.space import Params
from kdsearch.spec import Cost, TrialRecord
from kdsearch.study.builtin_spaces import find_space
from kdsearch.study.config import FLAT_SPACE, SAMPLERS, StudyConfig
from kdsearch.study.run_log import RunLog
from kdsearch.study.sampler_check import refuse_sampler
from kdsearch.study.study import REDRAWS, OpenStudy, searched
from kdsearch.study.trial_notes import Proposal, TrialOutcome
from kdsearch.workflows.finalize import finalize

# No choice owns a dimension, so that every sampler may draw.
FLAT = """
student:
  family: resnet
  resnet: {depth: {int: [1, 20]}, width: {float: [0.25, 1.0]}}
method: {name: kd}
train: {lr: {float: [0.01, 1.0], log: true}}
"""
TEACHER = {"name": "t", "val": 0.9, "test": 0.9, "flops": 1, "params": 1, "latency_ms": 1.0}


def price(params: Params) -> Cost | None:
    """Return one MFLOP a layer, as the table does."""
    depth = int(params.get(f"student.{params['student.family']}.depth", 2))
    return Cost(flops=depth * 1_000_000, params=depth * 1000)


def nothing_fits(params: Params) -> Cost:
    return Cost(flops=99_000_000, params=1)


def run_priced(study: OpenStudy, n: int) -> list[TrialRecord]:
    source = search(study, n_trials=n, price=price)
    local.run(TrialQueue(study, source), [look_up])
    return study.records()


def test_a_candidate_over_the_budget_is_rejected_early_and_is_no_trial(fast_path: Path) -> None:
    with opened(fast_path / "gate") as study:
        records = run_priced(study, 12)
        study.update_facts(teacher=TEACHER)
        counts = summarise(study).counts
    away = [record for record in records if record.rejected_early]
    assert away
    assert len(searched(records)) == 12
    assert not [record for record in searched(records) if record.state == "rejected"]
    assert [record.draw for record in records] == list(range(len(records)))
    for record in away:
        assert record.cost is not None
        over = record.cost.flops / (MAX_DEPTH * 1e6) - 1
        assert record.state == "rejected"
        assert record.violations == {"flops": pytest.approx(over)}
        assert record.reason == f"{record.cost.flops / 1e6:.4g} MFLOPs over {MAX_DEPTH}"
    assert counts.rejected_early == len(away)
    assert counts.complete + counts.failed == 12
    assert counts.rejected == 0


def test_the_sampler_learns_from_early_rejections(fast_path: Path) -> None:
    with opened(fast_path / "learns") as study:
        records = run_priced(study, 12)
        trials = study.store.trials()
    for record in records:
        trial = trials[record.number]
        assert trial.params
        if record.rejected_early:
            assert trial.state is TrialState.PRUNED
            assert trial.constraints["flops"] == record.violations["flops"]


def test_a_study_resumed_between_two_proposals_proposes_the_same(fast_path: Path) -> None:
    with opened(fast_path / "whole") as study:
        whole = run_priced(study, 8)
    for n in range(8):
        with opened(fast_path / "parts") as study:
            run_priced(study, n + 1)
    with opened(fast_path / "parts") as study:
        assert study.records() == whole


def test_a_killed_driver_resumes_the_same_row_of_rejections(fast_path: Path) -> None:
    """The row includes what the dead driver rejected, so it ends at the same candidate."""

    class KilledError(Exception):
        pass

    prices = 0

    def killed(params: Params) -> Cost:
        nonlocal prices
        prices += 1
        if prices == 8:
            raise KilledError
        return nothing_fits(params)

    with opened(fast_path / "row") as study:
        proposal = study.ask(nothing_fits)
    with pytest.raises(KilledError), opened(fast_path / "killed") as study:
        study.ask(killed)
    with opened(fast_path / "killed") as study:
        again = study.ask(nothing_fits)
        assert [r.state for r in study.records()].count("interrupted") == 1
    assert (
        (again.draw, again.params) == (proposal.draw, proposal.params) == (REDRAWS, proposal.params)
    )


def test_where_nothing_fits_a_row_ends_and_so_does_the_study(fast_path: Path) -> None:
    def over(proposal: Proposal) -> TrialOutcome:
        cost = nothing_fits(proposal.params)
        return TrialOutcome(state="rejected", cost=cost, violations=study.budget.violations(cost))

    with opened(fast_path / "none") as study:
        source = search(study, n_trials=3, price=nothing_fits)
        local.run(TrialQueue(study, source), [over])
        records = study.records()
    assert len(searched(records)) == 3
    assert len(records) == 3 * (REDRAWS + 1)


def test_without_a_price_nothing_is_rejected_early(fast_path: Path) -> None:
    def unknown(params: Params) -> None:
        return None

    with opened(fast_path / "plain") as study:
        plain = [study.ask().params for _ in range(4)]
    with opened(fast_path / "unknown") as study:
        assert [study.ask(unknown).params for _ in range(4)] == plain
        assert not [record for record in study.records() if record.rejected_early]


def test_report_and_status_show_that_no_student_is_accurate_enough(
    fast_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fast_path / "short"
    with opened(path, replace(REQUEST, min_accuracy=0.99)) as study:
        run_to(study, 6)
        study.update_facts(teacher=TEACHER)
        best = max(study.complete(), key=lambda record: record.val or 0)
    nearest = f"{100 * (best.val or 0):.2f} %"
    with pytest.raises(SystemExit):
        main(["report", "short", "--out", str(fast_path)])
    shown = " ".join(capsys.readouterr().out.split())
    stated = verdict(summarise(study), study.records()).replace(SPACE, " ")
    assert "reaches --min-accuracy 0.99" in stated
    assert f"trial {best.number} (" in stated
    assert f"has {nearest} on validation" in stated
    assert stated in shown
    assert stated.split(";")[0] in (path / "report.html").read_text().replace(SPACE, " ")
    (line,) = [line for line in status(path).lines() if "--min-accuracy" in line]
    least = "none reaches --min-accuracy 0.99"
    assert line.startswith(f"{least}; the nearest: trial {best.number}, {nearest}, ")


@pytest.fixture
def floored(fast_path: Path) -> Iterator[OpenStudy]:
    """Return a study of students of 1 to 5 layers, which must reach .59; trials end at .525 up."""
    config = replace(REQUEST, min_accuracy=0.59)
    with opened(fast_path / "floored", config) as study:
        for _ in range(5 - len(study.records())):
            proposal = study.ask()
            val = 0.5 + (proposal.number + 1) / 40
            cost = Cost(flops=(proposal.number + 1) * 1_000_000, params=1)
            study.tell(proposal, TrialOutcome(state="complete", cost=cost, val=val))
        yield study


def test_students_below_the_floor_are_not_on_the_front(floored: OpenStudy) -> None:
    """The accuracies are .525, .55, .575, .6 and .625, dearer each."""
    assert [record.number for record in floored.front()] == [3, 4]
    assert len(floored.complete()) == 5
    found = [trial.constraints["accuracy"] for trial in floored.store.trials()]
    assert found == pytest.approx([0.065, 0.04, 0.015, -0.01, -0.035])
    assert {trial.state for trial in floored.store.trials()} == {TrialState.COMPLETE}


def test_a_floor_that_no_student_reaches_is_reported(fast_path: Path) -> None:
    with opened(fast_path / "high", replace(REQUEST, min_accuracy=0.99)) as study:
        study.update_facts(teacher=TEACHER)
        while not study.complete():
            proposal = study.ask()
            study.tell(proposal, look_up(proposal))
        record = study.complete()[0]
        with (
            pytest.raises(BudgetError) as caught,
            RunLog(study, device="cpu", started=0.0) as run_log,
        ):
            finalize(study, None, None, None, run_log=run_log, with_baselines=False)  # type: ignore[arg-type]
    assert str(caught.value).startswith(
        f"no student reaches --min-accuracy 0.99: the best of 1, trial {record.number}, has "
    )


def parameter(sampler: str) -> Any:
    """Return a sampler as a parameter: 30 trials of GP take 8 s, of NSGA-II 6 s."""
    slow = [pytest.mark.slow] if sampler in ("gp", "nsga2") else []
    return pytest.param(sampler, marks=slow)


@pytest.mark.parametrize("sampler", [parameter(name) for name in SAMPLERS])
def test_a_sampler_proposes_the_same_in_a_resumed_study(sampler: str, fast_path: Path) -> None:
    """NSGA-II is in its second generation after 30 trials, the others past a random start of 10."""
    n = 30 if sampler == "nsga2" else 14
    config = StudyConfig(space=FLAT, sampler=sampler, seed=1)
    with opened(fast_path / f"{sampler}-whole", config) as study:
        whole = [run_asked(study, study.ask(), flat).params for _ in range(n)]
    parts = []
    for _ in range(n):
        with opened(fast_path / f"{sampler}-parts", config) as study:
            parts.append(run_asked(study, study.ask(), flat).params)
    assert parts == whole


def flat(proposal: Proposal) -> TrialOutcome:
    depth, width = (float(proposal.params[f"student.resnet.{name}"]) for name in ("depth", "width"))
    cost = Cost(flops=round(1e6 * depth * width), params=1)
    return TrialOutcome(
        state="complete", cost=cost, val=0.9 - 0.4 / depth - 0.1 * (width - 0.6) ** 2
    )


@pytest.mark.parametrize("sampler", [parameter(name) for name in ("nsga2", "gp", "tpe")])
def test_a_sampler_does_not_learn_from_controls(sampler: str, fast_path: Path) -> None:
    """A control of accuracy 1 would be the best parent and the whole front."""
    config = StudyConfig(space=FLAT, sampler=sampler, seed=1)
    drawn = {}
    for name in ("plain", "controlled"):
        with opened(fast_path / f"{sampler}-{name}", config) as study:
            for _ in range(45 if sampler == "nsga2" else 12):
                run_asked(study, study.ask(), flat)
            if name == "controlled":
                control = study.ask_control(study.front()[-1].params, 0)
                study.tell(control, replace(flat(control), val=1.0))
            drawn[name] = [run_asked(study, study.ask(), flat).params for _ in range(3)]
    assert drawn["plain"] == drawn["controlled"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sampler": "gp", "budget_mflops": 1.0}, "trials over --budget-mflops"),
        ({"sampler": "gp", "budget_mparams": 1.0}, "trials over --budget-mparams"),
        ({"sampler": "nsga2", "budget_ms": 1.0}, "trials over --budget-ms"),
        ({"sampler": "nsga2", "stopping": "safe"}, "--stopping safe ends"),
        ({"sampler": "nsga2", "space": REQUEST.space}, "options of student.family own"),
        ({"sampler": "gp", "space": REQUEST.space}, "no option owns dimensions, as --space resnet"),
    ],
)
def test_a_sampler_that_cannot_learn_from_the_study_is_refused(
    given: dict[str, object], message: str, tmp_path: Path
) -> None:
    config = replace(StudyConfig(space=FLAT), **given)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=message), opened(tmp_path / "study", config):
        pass
    assert not (tmp_path / "study" / "study.yaml").exists()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_accepts_the_space_that_the_refusal_names(sampler: str) -> None:
    refuse_sampler(StudyConfig(space=find_space(FLAT_SPACE).text, sampler=sampler))


def test_nsga2_accepts_a_budget_that_is_priced_before_the_trial(fast_path: Path) -> None:
    config = StudyConfig(space=FLAT, sampler="nsga2", budget_mflops=5.0)
    with opened(fast_path / "nsga2-gate", config) as study:
        source = search(study, n_trials=25, price=priced_flat)
        local.run(TrialQueue(study, source), [flat])
        assert all(r.cost and r.cost.flops <= 5e6 for r in searched(study.records()))


def priced_flat(params: Params) -> Cost | None:
    return flat(Proposal(number=0, params=params, digest="")).cost


def test_a_request_names_the_samplers() -> None:
    with pytest.raises(SpecError, match=r"--sampler 'tpee' \(did you mean 'tpe'\?\): expected tpe"):
        StudyConfig(sampler="tpee")
    with pytest.raises(SpecError, match="--min-accuracy 90: expected a fraction"):
        StudyConfig(min_accuracy=90.0)
