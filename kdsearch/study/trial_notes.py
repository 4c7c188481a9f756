"""Trials as the store keeps them: what Optuna has no place for is one JSON attribute. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from kdsearch.documents import mistake_in, parse_json
from kdsearch.errors import SpecError, StudyError
from kdsearch.space import Params
from kdsearch.spec import Cost, TrialRecord, kind_of
from kdsearch.study.store import NOTE

_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "interrupted",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
}
_OPTUNA_STATES = {
    "complete": TrialState.COMPLETE,
    "rejected": TrialState.PRUNED,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A trial to run: its number and its parameters, which `digest` names.

    draw: its place in the order of proposals, which seeds the sampler; None outside the search.
    control_of, refit_of: see TrialRecord. pause_at: the epoch after which its training pauses;
    None: it is trained in full. stored: the number under which the store keeps a resumed training,
    whose outcome is added to that of trial `number`; None: the same number.
    """

    number: int
    params: Params
    digest: str
    draw: int | None = None
    control_of: int | None = None
    refit_of: int | None = None
    pause_at: int | None = None
    stored: int | None = None

    @property
    def kind(self) -> str:
        """Return what a trial outside the search is, '' for one of it; see `kind_of`."""
        return kind_of(self.control_of, self.refit_of)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOutcome:
    """The outcome of a trial: `complete`, `rejected`, `pruned` or `failed` (see TrialRecord)."""

    state: str
    cost: Cost | None = None
    violations: Mapping[str, float] = field(default_factory=dict)
    val: float | None = None
    curve: tuple[float, ...] = ()
    epochs: int = 0
    seconds: float = 0.0
    teacher_seconds: float = 0.0
    mode: str = ""
    reason: str = ""
    reused_from: int | None = None
    rejected_early: bool = False
    inherited: float = 0.0
    taught_epochs: int | None = None


def optuna_state(state: str, kind: str) -> TrialState:
    """Return Optuna's state of a trial that ended; controls are not on Optuna's front."""
    return TrialState.PRUNED if kind and state == "complete" else _OPTUNA_STATES[state]


def note_of(proposal: Proposal, outcome: TrialOutcome | None = None) -> str:
    """Return the JSON attribute of a trial."""
    kept = asdict(proposal)
    if proposal.stored is None:
        del kept["number"]
    return json.dumps(kept | ({} if outcome is None else asdict(outcome)))


def record_of(frozen: FrozenTrial) -> TrialRecord:
    """Read a trial. One that failed for Optuna and has no failed outcome was interrupted.

    It may have an outcome, if the driver was killed before it set the state in Optuna, or no
    attribute, if the driver was stopped while it sampled.
    """
    note = frozen.user_attrs.get(NOTE, '{"params": {}}')
    try:
        return _read_note(parse_json(note), frozen)
    except (ValueError, TypeError, AttributeError, KeyError, SpecError) as error:
        raise StudyError(
            f"the note of trial {frozen.number} is damaged, or a newer kdsearch wrote it: "
            f"{mistake_in(error)}"
        ) from error


def _read_note(kept: dict[str, Any], frozen: FrozenTrial) -> TrialRecord:
    cost = kept.pop("cost", None)
    curve = tuple(kept.pop("curve", ()))
    state, kind = str(kept.get("state")), kind_of(kept.get("control_of"), kept.get("refit_of"))
    known = _OPTUNA_STATES.get(state)
    if known is None or frozen.state not in (known, optuna_state(state, kind)):
        kept["state"] = _STATES[frozen.state]
    number = kept.pop("number", frozen.number)
    for key in ("pause_at", "stored"):
        kept.pop(key, None)
    return TrialRecord(number=number, cost=Cost(**cost) if cost else None, curve=curve, **kept)
