"""Rungs of a study: pruned trials are stored, reused and counted, the same each time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from table_study import REQUEST, SMALL_SPACE, look_up, opened, run_asked, run_search

from kdsearch.errors import SpecError
from kdsearch.report.artifacts import summarise
from kdsearch.spec import Candidate, TrialRecord
from kdsearch.study.config import StudyConfig
from kdsearch.study.early_stopping import Rung, StudyPruner, curves_of, earlier_curves
from kdsearch.study.importances import rankings
from kdsearch.study.ranking import shares
from kdsearch.study.study import OpenStudy, searched
from kdsearch.study.trial_notes import Proposal, TrialOutcome

TEACHER = {"name": "t", "val": 0.9, "test": 0.9, "flops": 9, "params": 9, "latency_ms": 0.9}
EPOCHS = 10  # the default of TrainSpec
# No vit of one layer, which fails: three in a row would end the study.
OFF = replace(
    REQUEST, space=REQUEST.space.replace("vit: {depth: {int: [1,", "vit: {depth: {int: [2,")
)
SAFE = replace(OFF, stopping="safe")
WHOLE = "whole"


def train(study: OpenStudy, proposal: Proposal) -> TrialOutcome:
    """Look up how a trial ends, let its curve rise to there, and stop where the rule says."""
    message = look_up(proposal)
    if message.state != "complete":
        return message
    assert message.val is not None
    assert message.cost is not None
    pruner = StudyPruner(study, images=2000)
    curve = tuple(message.val * (0.5 + 0.5 * n / EPOCHS) for n in range(1, EPOCHS + 1))
    for epoch in (1, 2, 4, 8):
        reason = pruner(Rung(curve=curve[:epoch], epochs=EPOCHS, cost=message.cost))
        if reason is not None and proposal.control_of is None:
            return replace(message, state="pruned", val=None, curve=curve[:epoch], reason=reason)
    return replace(message, curve=curve)


def run_to(study: OpenStudy, n_trials: int) -> list[TrialRecord]:
    run_search(study, [lambda proposal: train(study, proposal)], n_trials=n_trials)
    return study.records()


@pytest.fixture(scope="module")
def whole(fast_path: Path) -> list[TrialRecord]:
    with opened(fast_path / WHOLE, SAFE) as study:
        return run_to(study, 40)


def test_what_cannot_reach_the_front_is_stopped_and_what_can_is_not(
    whole: list[TrialRecord],
) -> None:
    stopped = [record for record in whole if record.state == "pruned"]
    assert stopped
    assert all(len(record.curve) in (1, 2, 4, 8) and record.val is None for record in stopped)
    assert all(record.reason.startswith("epoch ") for record in stopped)
    first = [record.state for record in whole if record.state in ("complete", "pruned")]
    assert first[:8] == ["complete"] * 8


def test_an_unstopped_study_stops_nothing(fast_path: Path) -> None:
    with opened(fast_path / "off", OFF) as study:
        assert "pruned" not in {record.state for record in run_to(study, 40)}


@pytest.mark.parametrize("n_trials", [9, 25])
def test_a_resumed_study_stops_the_same_trials_at_the_same_rungs(
    n_trials: int, fast_path: Path, whole: list[TrialRecord]
) -> None:
    with opened(fast_path / "cut", SAFE) as study:
        run_to(study, n_trials)
        study.ask()  # the driver dies in the middle of a trial
    with opened(fast_path / "cut", SAFE) as study:
        again = searched(run_to(study, 40))
    assert [unnumbered(record) for record in again] == [unnumbered(r) for r in searched(whole)]


def unnumbered(record: TrialRecord) -> TrialRecord:
    """Return a record without its number, or that of another, which an interrupted one shifts."""
    reason = record.reason if record.reused_from is None else "equal"
    return replace(record, number=0, reused_from=None, reason=reason)


def test_what_equals_a_stopped_trial_is_stopped_without_training_but_for_a_control(
    fast_path: Path,
) -> None:
    with opened(fast_path / "equal", StudyConfig(space=SMALL_SPACE, stopping="safe")) as study:
        proposal = study.ask()
        outcome = replace(
            look_up(proposal), state="pruned", val=None, curve=(0.1,), reason="hopeless"
        )
        stopped = study.tell(proposal, outcome)
        while (twin := study.ask()).digest != proposal.digest:
            study.tell(twin, look_up(twin))
        record = run_asked(study, twin, lambda _: pytest.fail("trained"))
        assert (record.state, record.reused_from) == ("pruned", stopped.number)
        assert record.curve == (0.1,)
        control = study.ask_control(proposal.params, 0)
        assert run_asked(study, control, look_up).state == "complete"
        study.update_facts(teacher=TEACHER)
        assert summarise(study).counts.pruned == 2


def test_a_stopped_trial_has_no_place_on_the_front_and_none_in_importances(
    whole: list[TrialRecord], fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdsearch.study.importances.FEWEST_TRIALS", 8)
    with opened(fast_path / WHOLE, SAFE) as study:
        assert {record.state for record in study.front()} == {"complete"}
        assert sum(shares(rankings(study)).values()) == pytest.approx(1.0)


def test_curves_of_other_epochs_or_another_start_are_not_compared(
    whole: list[TrialRecord], fast_path: Path
) -> None:
    """All trials have 10 epochs; one of 20 is judged by the margin."""
    with opened(fast_path / WHOLE, SAFE) as study:
        done = [record for record in study.records() if record.state == "complete"]
        assert {Candidate.from_params(r.params).train.epochs for r in done} == {EPOCHS}
        dear = max((r.cost for r in done if r.cost), key=lambda cost: cost.flops)
        pruner = StudyPruner(study, images=2000)
        assert pruner(Rung(curve=(0.01,) * 8, epochs=20, cost=dear)) is None
        assert pruner(Rung(curve=(0.01,) * 8, epochs=EPOCHS, cost=dear)) is not None
        inherited = Rung(curve=(0.01,) * 8, epochs=EPOCHS, cost=dear, init="pretrained")
        assert pruner(inherited) is None


def test_a_word_that_is_no_mode_is_refused() -> None:
    with pytest.raises(SpecError, match=r"--stopping 'thight'.*did you mean.*off, safe, tight"):
        StudyConfig(stopping="thight")


def test_an_earlier_study_predicts_before_eight_trials_of_this_one_are_complete(
    whole: list[TrialRecord], fast_path: Path
) -> None:
    """With three complete of its own, one that is dearer and far behind stops."""
    with opened(fast_path / WHOLE, SAFE) as study:
        earlier = curves_of(study)
        before = study
        own = [r for r in searched(study.records()) if r.curve and r.reused_from is None]
        assert [curve.values for curve in earlier] == [record.curve for record in own]
        assert sum(curve.is_complete for curve in earlier) >= 8
    with opened(fast_path / "later", SAFE) as study:
        assert earlier_curves(study, before) == earlier
        alone, message = (
            StudyPruner(study, images=2000),
            StudyPruner(study, images=2000, earlier=earlier),
        )
        dear = max((record.cost for record in own if record.cost), key=lambda cost: cost.flops)
        hopeless = Rung(curve=(0.01,) * 8, epochs=EPOCHS, cost=dear)
        assert message(hopeless) is None  # none of this study is to be beaten yet
        done: list[TrialRecord] = []
        while len(done) < 3:
            run_to(study, len(study.records()) + 1)
            done = [record for record in study.records() if record.state == "complete"]
        assert alone(hopeless) is None
        reason = message(hopeless)
        assert reason is not None
        assert "predicts" in reason


@pytest.mark.parametrize(
    "other", [{"data_key": "others"}, {"image_size": 64}, {"budget_mflops": None, "budget_ms": 2.0}]
)
def test_a_study_of_other_images_or_another_cost_predicts_nothing(
    fast_path: Path, other: dict[str, object]
) -> None:
    name = "-".join(other)
    with opened(fast_path / name, replace(SAFE, **other)) as before:  # type: ignore[arg-type]
        run_to(before, 12)
        assert curves_of(before)
    with opened(fast_path / f"{name} after", SAFE) as study:
        assert earlier_curves(study, before) == []
