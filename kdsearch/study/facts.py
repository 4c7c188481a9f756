"""Facts about a study as a whole: one JSON note in its store, read and written here alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from kdsearch.data.base import CLASSIFICATION
from kdsearch.documents import mistake_in
from kdsearch.errors import SpecError, StudyError
from kdsearch.space import Params
from kdsearch.spec import Candidate, Cost, TrialRecord
from kdsearch.study.summary import Baseline, Images, TeacherEntry
from kdsearch.tasks.base import DEFAULT_METRIC, Details, Metric

SEEDS = 3
CONTROLS = ("none", "kd")  # methods of a refitted candidate's controls


@dataclass(frozen=True, slots=True, kw_only=True)
class Refit:
    """Retrain the `count` best candidates of the front under so many seeds, 0 for none.

    epochs: of each of these trainings; None: as many as in the search. left_out: methods that no
    control has, as the teachers cannot teach them.
    """

    count: int = 0
    seeds: int = SEEDS
    epochs: int | None = None
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.count < 0:
            raise SpecError(f"--refit {self.count}: expected a number of candidates, 0 for none")
        if self.seeds < 2:
            raise SpecError(
                f"--seeds {self.seeds}: one training has no spread; give --seeds {SEEDS}, or at "
                "least 2"
            )
        if self.epochs is not None and self.epochs < 1:
            raise SpecError(f"--refit-epochs {self.epochs}: expected at least 1")

    def params(self, record: TrialRecord, repeat: int, method: str | None = None) -> Params:
        """Return a candidate's parameters under one seed; with a method, those of its control."""
        params = dict(record.params)
        if method is not None:
            kept = {name: v for name, v in params.items() if not name.startswith("method.")}
            params = {**kept, "method.name": method}
        epochs = {} if self.epochs is None else {"train.epochs": self.epochs}
        return {**params, **epochs, "train.repeat": repeat}

    def controls(self, record: TrialRecord) -> list[str]:
        """Return the methods of a candidate's controls, without the candidate's own."""
        own = candidate_digest(self.params(record, 1))
        methods = [method for method in CONTROLS if method not in self.left_out]
        return [m for m in methods if candidate_digest(self.params(record, 1, m)) != own]


def candidate_digest(params: Params) -> str:
    """Return the digest of the candidate that a walked space describes."""
    return Candidate.from_params(params).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a study. began: ISO 8601, UTC. seconds: wall time. end: see `run_log`."""

    began: str
    seconds: float
    device: str
    end: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyFacts:
    """What the driver stores about the study as a whole.

    trials, spend, flat_after, until, refit: the plan of the last run. enqueued: parameters to try,
    by draw. runs: those that ended, oldest first. baselines: None before they are measured. test:
    the metric on the test split by trial. details: of evaluations, by `teacher` or trial and split,
    as `teacher validation` and `12 test`. classes: their names. costs: by trial, with the latency
    that was measured after the search. chance, best, shipped: see Summary. notes: findings.
    is_finished: the last run did all of its plan, which no time limit or callback ended early.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    task: str = CLASSIFICATION
    metric: Metric = DEFAULT_METRIC
    teacher: TeacherEntry | None = None
    teacher_seconds: float = 0.0
    trials: int | None = None
    spend: int | None = None
    flat_after: int | None = None
    until: float | None = None
    refit: Refit = field(default_factory=Refit)
    enqueued: Mapping[int, Params] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()
    images: Images = field(default_factory=Images)
    chance: float | None = None
    baselines: tuple[Baseline, ...] | None = None
    test: Mapping[int, float] = field(default_factory=dict)
    details: Mapping[str, Details] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    costs: Mapping[int, Cost] = field(default_factory=dict)
    best: int | None = None
    shipped: int | None = None
    notes: tuple[str, ...] = ()
    finish_seconds: float = 0.0
    is_finished: bool = False

    def changed(self, **changes: Any) -> StudyFacts:
        """Return a validated copy with some facts replaced."""
        return read_facts(replace(self, **changes).to_json())

    def to_json(self) -> str:
        """Return the note that the store keeps."""
        return json.dumps(asdict(self))

    def teacher_entry(self) -> TeacherEntry:
        """Return the teacher. Raises StudyError before it was evaluated."""
        if self.teacher is None:
            raise StudyError("the study has not evaluated its teacher yet; run it first")
        return self.teacher


_READER = TypeAdapter(StudyFacts)


def read_facts(note: str) -> StudyFacts:
    """Read a study's note. Raises StudyError for one of another format."""
    try:
        return _READER.validate_json(note)
    except ValidationError as error:
        raise StudyError(
            f"an older kdsearch stored the study's facts ({mistake_in(error)}), in a format that "
            "this one does not read; use that version, or start again with another --name"
        ) from error
