"""Trials climb the rungs: the best are resumed, their controls are compared, one is in full."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from table_study import opened

from kdsearch.engines import local
from kdsearch.engines.dispatch import TrialQueue, search
from kdsearch.hpo.halving import Halving, Rung
from kdsearch.spec import Cost, TrialRecord
from kdsearch.study.callbacks import Callback, Callbacks
from kdsearch.study.config import StudyConfig
from kdsearch.study.stop_conditions import StopConditions
from kdsearch.study.study import OpenStudy
from kdsearch.study.summary import Images
from kdsearch.study.trial_notes import Proposal, TrialOutcome
from kdsearch.trials.trial import WEIGHTS
from kdsearch.workflows.run import _keep_weights
from kdsearch.workflows.rungs import best_at, climb, forget

SPACE = """
student: {family: {choice: {resnet: {depth: {int: [1, 40]}}, vit: {depth: {int: [1, 40]}}}}}
method: {name: {choice: {kd: {}, at: {}}}}
"""
EPOCHS = 16
CONFIG = StudyConfig(space=SPACE, epochs=EPOCHS, look_epochs=2, batch_size=8, seed=3)
HALVING = Halving(
    rungs=(Rung(epochs=2, count=8), Rung(epochs=4, count=2), Rung(epochs=EPOCHS, count=1))
)


def train(proposal: Proposal) -> TrialOutcome:
    """Return a curve that depends on depth and method, as far as the training goes."""
    params = proposal.params
    depth = int(params[f"student.{params['student.family']}.depth"])
    quality = depth + 0.5 * (params["method.name"] == "at") - (params["method.name"] == "none")
    epochs = proposal.pause_at or EPOCHS
    curve = tuple(quality / 100 + epoch / 40 for epoch in range(1, epochs + 1))
    cost = Cost(flops=1e6 * depth, params=1e3)
    return TrialOutcome(
        state="complete", cost=cost, val=curve[-1], curve=curve, epochs=EPOCHS, seconds=len(curve)
    )


class Notes(Callback):
    """Keeps the messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_message(self, text: str) -> None:
        self.lines.append(text)


def run(
    study: OpenStudy,
    evaluate: Callable[[Proposal], TrialOutcome] = train,
    *,
    time_limit: float | None = None,
) -> list[TrialRecord]:
    """Run the search and the rungs; return the records."""

    def engine(source: Iterator[Proposal]) -> None:
        local.run(TrialQueue(study, source), [evaluate])

    notes = Notes()
    study.update_facts(images=Images(val=10_000))
    stop = StopConditions(study, Callbacks([notes]), time_limit=time_limit)
    engine(search(study, n_trials=HALVING.trials))
    climb(study, HALVING, engine, stop, note=notes.on_message)
    return study.records()


@pytest.fixture(scope="module")
def records(fast_path: Path) -> list[TrialRecord]:
    with opened(fast_path / "rungs", CONFIG) as study:
        return run(study)


def own(records: list[TrialRecord]) -> list[TrialRecord]:
    return [record for record in records if record.reused_from is None]


def test_each_rung_resumes_the_best_of_the_one_before(records: list[TrialRecord]) -> None:
    looks = [record for record in records if not record.kind]
    assert [record.number for record in looks] == list(range(8))
    ranked = sorted(own(looks), key=lambda record: -record.curve[1])
    assert [len(record.curve) for record in ranked[:2]] == [EPOCHS, 4]
    assert {len(record.curve) for record in ranked[2:]} <= {2, HALVING.final}  # or a control
    assert ranked[0].val == max(record.val or 0 for record in records)


def test_the_epochs_are_those_of_the_plan(records: list[TrialRecord]) -> None:
    """Less by the looks that equal an earlier one, and by what stands for a control."""
    trained = sum(len(record.curve) for record in own(records))
    reused = [record for record in records if record.reused_from is not None]
    looks = sum(not record.kind for record in reused)
    assert trained <= HALVING.total - HALVING.look * looks
    assert sum(record.seconds for record in own(records)) >= trained


def test_the_finalist_has_controls_of_as_many_epochs(records: list[TrialRecord]) -> None:
    best = max(records, key=lambda record: record.val or 0)
    controls = [record for record in records if record.kind == "control"]
    assert {record.control_of for record in controls} == {best.number}
    assert {len(record.curve) for record in controls} == {HALVING.final}
    methods = {str(record.params["method.name"]) for record in controls}
    assert methods == {"none", "kd"} - {str(best.params["method.name"])}
    student = {name: v for name, v in best.params.items() if name.startswith("student.")}
    assert all(student.items() <= record.params.items() for record in controls)


def test_a_control_that_leads_is_trained_in_full_and_on_the_front(fast_path: Path) -> None:
    def distillation_hurts(proposal: Proposal) -> TrialOutcome:
        deep = {"student.family": "resnet", "student.resnet.depth": 90}
        is_plain = proposal.params["method.name"] == "none"
        return train(replace(proposal, params={**proposal.params, **(deep if is_plain else {})}))

    with opened(fast_path / "hurts", CONFIG) as study:
        records = run(study, distillation_hurts)
        control = next(r for r in records if r.params["method.name"] == "none")
        assert control.kind == "control"
        assert len(control.curve) == EPOCHS
        assert study.front()[-1].number == control.number


@pytest.mark.parametrize("ends", [3, 8, 9, 10, 11, 12])
def test_an_interrupted_study_ends_as_one_that_was_not(
    ends: int, records: list[TrialRecord], fast_path: Path
) -> None:
    left = ends

    def interrupted(proposal: Proposal) -> TrialOutcome:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return train(proposal)

    path = fast_path / f"interrupted-{ends}"
    with opened(path, CONFIG) as study, pytest.raises(KeyboardInterrupt):
        run(study, interrupted)
    with opened(path, CONFIG) as study:
        again = run(study)
    assert {(r.digest, r.curve) for r in own(again) if r.state == "complete"} == {
        (r.digest, r.curve) for r in own(records)
    }


def test_a_failed_stage_leaves_the_first_look(fast_path: Path) -> None:
    def fails(proposal: Proposal) -> TrialOutcome:
        if proposal.stored is not None:
            return TrialOutcome(state="failed", reason="the loss became nan")
        return train(proposal)

    with opened(fast_path / "failed", CONFIG) as study:
        records = run(study, fails)
        assert {len(record.curve) for record in own(records)} == {2}
        assert {record.state for record in records} == {"complete"}
        assert study.front()


def test_a_time_limit_pauses_the_training_in_full(fast_path: Path) -> None:
    """A look of two epochs took two seconds; five seconds are left for three more rungs."""
    path = fast_path / "limit"
    with opened(path, CONFIG) as study:
        paused = run(study, time_limit=5.5)
        longest = max(paused, key=lambda record: len(record.curve))
        assert 4 < len(longest.curve) < EPOCHS
        again = run(study)
    assert max(len(record.curve) for record in again) == EPOCHS


def test_checkpoints_of_trials_that_lost_are_removed(fast_path: Path, tmp_path: Path) -> None:
    with opened(fast_path / "forget", CONFIG) as study:
        local.run(TrialQueue(study, search(study, n_trials=8)), [train])
        for record in study.records():
            (tmp_path / f"{record.digest}.pt").touch()
        left = forget(study, tmp_path, HALVING, study.records())
        kept = {record.digest for record in best_at(study, 2, 2)}
        kept |= {r.digest for r in study.records() if r.params["method.name"] == "kd"}  # controls
        assert {file.stem for file in tmp_path.iterdir()} == kept
        assert {record.digest for record in left} == kept


def test_a_lost_checkpoint_is_removed_once_and_not_after_each_later_trial(
    fast_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    left: list[TrialRecord] = []

    def on_trial(record: TrialRecord) -> None:
        left[:] = forget(study, tmp_path, HALVING, [*left, record])

    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: removed.append(path.name))
    with opened(fast_path / "once", CONFIG) as study:
        local.run(TrialQueue(study, search(study, n_trials=12), on_trial=on_trial), [train])
    removed = [name for name in removed if name.endswith(".pt")]
    assert removed
    assert len(removed) == len(set(removed))


def test_weights_are_kept_until_a_training_in_full_dominates_them(fast_path: Path) -> None:
    """Trial 0 leads after its look, at the cost of trial 1, and falls below it in full."""

    def kept(records: list[TrialRecord]) -> set[int]:
        for record in records:
            (study.directory(record.number) / WEIGHTS).parent.mkdir(parents=True, exist_ok=True)
            (study.directory(record.number) / WEIGHTS).touch()
        left = _keep_weights(study, records, study.front())
        there = {r.number for r in records if (study.directory(r.number) / WEIGHTS).exists()}
        assert there == {record.number for record in left}
        return there

    def tell(proposal: Proposal, *curve: float) -> TrialRecord:
        outcome = replace(train(proposal), cost=Cost(flops=1e6, params=1e3))
        return study.tell(proposal, replace(outcome, val=curve[-1], curve=curve))

    with opened(fast_path / "fallen", CONFIG) as study:
        looks = [tell(study.ask(), *curve) for curve in ((0.5, 0.9), (0.5, 0.8), (0.5, 0.6))]
        assert kept(looks) == {0, 1, 2}
        tell(study.ask_resumed(looks[0], None), *(0.5, 0.9), *(14 * [0.7]))
        records = study.records()
        assert [record.number for record in study.front()] == [1]
        assert kept([*looks, records[0]]) == {0, 1, 2}  # the leader is paused
        tell(study.ask_resumed(looks[1], None), *(0.5, 0.8), *(14 * [0.75]))
        assert kept(study.records()) == {1}


def test_an_explored_front_resumes_it_front_by_front(fast_path: Path) -> None:
    """More depth costs more and is better, so all looks are on one front; the best comes first."""
    with opened(fast_path / "explored", replace(CONFIG, explore="front")) as study:
        local.run(TrialQueue(study, search(study, n_trials=6)), [train])
        found = best_at(study, 2, 6)
        by_value = sorted(found, key=lambda record: -record.curve[1])
        costs = [record.cost.flops for record in by_value if record.cost is not None]
        expected = [r for i, r in enumerate(by_value) if costs[i] not in costs[:i]]
        assert found[: len(expected)] == expected
