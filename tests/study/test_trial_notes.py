"""A trial is read as it was written, from Optuna's states of this version and of earlier ones."""

from __future__ import annotations

import pytest
from optuna.trial import TrialState, create_trial

from kdsearch.study.store import NOTE
from kdsearch.study.trial_notes import (
    Proposal,
    TrialOutcome,
    note_of,
    optuna_state,
    record_of,
)


def read(proposal: Proposal, outcome: TrialOutcome, state: TrialState, value: float | None) -> str:
    note = {NOTE: note_of(proposal, outcome)}
    return record_of(create_trial(state=state, value=value, user_attrs=note)).state


@pytest.mark.parametrize("control_of", [None, 3], ids=["search", "control"])
@pytest.mark.parametrize("state", ["complete", "rejected", "pruned", "failed"])
def test_an_outcome_is_read_back(state: str, control_of: int | None) -> None:
    proposal = Proposal(number=5, params={}, digest="d", control_of=control_of)
    kept = optuna_state(state, proposal.kind)
    value = 0.5 if kept is TrialState.COMPLETE else None
    assert read(proposal, TrialOutcome(state=state), kept, value) == state


def test_a_control_is_not_on_the_front_of_optuna_and_earlier_ones_are_read() -> None:
    assert optuna_state("complete", "") is TrialState.COMPLETE
    assert optuna_state("complete", "control") is TrialState.PRUNED
    control = Proposal(number=5, params={}, digest="d", control_of=3)
    done = TrialOutcome(state="complete")
    assert read(control, done, TrialState.COMPLETE, 0.5) == "complete"


def test_a_trial_whose_driver_died_before_its_state_was_set_is_interrupted() -> None:
    proposal = Proposal(number=5, params={}, digest="d")
    done = TrialOutcome(state="complete")
    assert read(proposal, done, TrialState.FAIL, None) == "interrupted"
