"""A study on disk: its request, its trials, and what is asked of and told to it.

`study.db` is the one truth about trials and is written by the driver alone; `study.yaml` holds the
request and is written once. Everything about a trial that Optuna has no place for is one JSON
user attribute. No torch here.
"""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO

import optuna
import yaml
from optuna.trial import FrozenTrial, Trial, TrialState

from kdsearch import pareto
from kdsearch.errors import StudyError
from kdsearch.request import (
    Request,
    read_request,
    refuse_changes,
    resume_command,
    write_text,
)
from kdsearch.sampler import GroupedTPE, suggest
from kdsearch.space import Params
from kdsearch.spec import Budget, Candidate, Cost, TrialRecord, digest_of
from kdsearch.store import NOTE, STORE_ERRORS, Store, experimental_is_fine


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A trial to run: its number and its parameters, which `digest` names.

    draw: its place in the order of proposals, which seeds the sampler; None for a control.
    control_of: see TrialRecord.
    """

    number: int
    params: Params
    digest: str
    draw: int | None = None
    control_of: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a trial ended: `complete`, `infeasible`, `pruned` or `failed` (see TrialRecord)."""

    state: str
    cost: Cost | None = None
    violations: Mapping[str, float] = field(default_factory=dict)
    val: float | None = None
    curve: tuple[float, ...] = ()
    seconds: float = 0.0
    teacher_seconds: float = 0.0
    mode: str = ""
    reason: str = ""
    reused_from: int | None = None


class Study:
    """An open study. Use `open_study`, which holds the lock that keeps a second driver out."""

    def __init__(self, path: Path, request: Request, store: Store) -> None:
        self.path = path
        self.name = path.name
        self.request = request
        self.budget = request.budget
        self._space = request.search_space()
        self._store = store
        self._ended: dict[int, TrialRecord] = {}

    def ask(self) -> Asked:
        """Return the next trial, drawn by a sampler seeded with (seed, its place in the draws).

        A sampler for each trial makes a resumed study propose what an uninterrupted one would; the
        place of an interrupted trial is the next one to be drawn.
        """
        records = self.records()
        drawn = {r.draw for r in records if r.state != "interrupted"}
        draw = next(place for place in count() if place not in drawn)
        is_beside = any(record.state == "running" for record in records)
        trial = self._store.propose(self._sampler(draw, is_beside=is_beside))
        params = self._space.walk(partial(suggest, trial))
        return self._begin(trial, params, draw=draw)

    def ask_control(self, params: Params, control_of: int) -> Asked:
        """Return a trial outside the search: the student of `control_of`, taught otherwise.

        It has no Optuna parameters, so that the sampler does not learn from it.
        """
        trial = self._store.propose(self._sampler(0))
        return self._begin(trial, params, control_of=control_of)

    def _sampler(self, draw: int, *, is_beside: bool = False) -> GroupedTPE:
        seed = int(digest_of([self.request.seed, draw]), 16) % 2**32
        return GroupedTPE(self._space, seed=seed, is_beside=is_beside)

    def _begin(
        self,
        trial: Trial,
        params: Params,
        *,
        draw: int | None = None,
        control_of: int | None = None,
    ) -> Asked:
        asked = Asked(
            number=trial.number,
            params=params,
            digest=Candidate.from_params(params).digest(),
            draw=draw,
            control_of=control_of,
        )
        self._store.begin(trial, _note(asked))
        return asked

    def earlier(self, asked: Asked) -> TrialRecord | None:
        """Return the trial of an equal candidate, whose outcome stands; None without.

        One that was stopped stands too, but for a control, which is never stopped.
        """
        states = ("complete", "pruned") if asked.control_of is None else ("complete",)
        equal = (r for r in self.records() if r.digest == asked.digest and r.state in states)
        return next((record for record in equal if record.reused_from is None), None)

    def tell(self, asked: Asked, outcome: Outcome) -> TrialRecord:
        """Store how a trial ended; constraints go in before the values, as the sampler needs.

        A complete trial whose accuracy is not a number becomes a failed one.
        """
        if outcome.val is not None and not math.isfinite(outcome.val):
            reason = f"the accuracy is {outcome.val}"
            outcome = replace(outcome, state="failed", val=None, reason=reason)
        values = None
        if outcome.state == "complete":
            assert outcome.val is not None
            assert outcome.cost is not None
            values = [outcome.val, float(getattr(outcome.cost, self.budget.axis()))]
        frozen = self._store.end(
            asked.number,
            _TOLD[outcome.state],
            values,
            note=_note(asked, outcome),
            constraints=outcome.violations,
        )
        return _record(frozen)

    def records(self) -> list[TrialRecord]:
        """Return every trial, oldest first."""
        trials = self._store.trials()
        for frozen in trials:
            if frozen.state.is_finished() and frozen.number not in self._ended:
                self._ended[frozen.number] = _record(frozen)
        return [self._ended.get(frozen.number) or _record(frozen) for frozen in trials]

    def directory(self, number: int) -> Path:
        """Return the folder of a trial's own files."""
        return self.path / "trials" / f"{number:06d}"

    def front(self) -> list[TrialRecord]:
        """Return the non-dominated trials of the search, cheapest first."""
        done = [r for r in searched(self.records()) if r.state == "complete"]
        return [done[i] for i in pareto.front([self.point(record) for record in done])]

    def point(self, record: TrialRecord) -> tuple[float, float]:
        """Return (accuracy, cost) of a complete trial on the axes of the front."""
        assert record.val is not None
        return record.val, float(getattr(record.cost, self.budget.axis()))

    def importances(self) -> dict[str, float]:
        """Return each parameter's share in what decides accuracy (PED-ANOVA), empty when unknown.

        Watanabe et al., IJCAI 2023, arXiv:2304.10255; needs a few complete trials that differ.
        """
        trials = self._store.trials()
        done = [trial for trial in trials if trial.state is TrialState.COMPLETE and trial.params]
        if len(done) < _MIN_FOR_IMPORTANCE or len({trial.values[0] for trial in done}) < 2:
            return {}
        plain = optuna.create_study(direction="maximize")
        for trial in done:
            plain.add_trial(
                optuna.trial.create_trial(
                    params=trial.params, distributions=trial.distributions, value=trial.values[0]
                )
            )
        return _ped_anova(plain)

    def facts(self) -> dict[str, object]:
        """Return what the driver noted of the study as a whole (teacher, test results, times)."""
        facts: dict[str, object] = json.loads(self._store.note() or "{}")
        return facts

    def note(self, **facts: object) -> None:
        """Add to the study's facts; an equal name replaces the old value."""
        self._store.set_note(json.dumps({**self.facts(), **facts}))


_MIN_FOR_IMPORTANCE = 8


def searched(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trials of the search that ended: no controls, nothing interrupted."""
    return [r for r in records if r.control_of is None and r.state not in _UNFINISHED]


_UNFINISHED = ("running", "interrupted")
_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "interrupted",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "running",
}
_TOLD = {
    "complete": TrialState.COMPLETE,
    "infeasible": TrialState.PRUNED,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def _note(asked: Asked, outcome: Outcome | None = None) -> str:
    """Return what is kept of a trial beside its Optuna parameters."""
    kept = {key: value for key, value in asdict(asked).items() if key != "number"}
    return json.dumps(kept | ({} if outcome is None else asdict(outcome)))


def _record(frozen: FrozenTrial) -> TrialRecord:
    """Read a trial; one that Optuna calls failed and we do not was interrupted.

    It may hold an outcome: the driver was killed after noting it and before telling Optuna. It may
    hold nothing: the driver was stopped while it was proposed.
    """
    kept = json.loads(frozen.user_attrs.get(NOTE, '{"params": {}}'))
    cost = kept.pop("cost", None)
    curve = tuple(kept.pop("curve", ()))
    if _TOLD.get(kept.get("state")) is not frozen.state:
        kept["state"] = _STATES[frozen.state]
    return TrialRecord(
        number=frozen.number, cost=Cost(**cost) if cost else None, curve=curve, **kept
    )


def _ped_anova(study: optuna.Study) -> dict[str, float]:
    trials = study.get_trials(deepcopy=False)  # a copy of 1,000 takes 0.3 s
    with experimental_is_fine():
        names = sorted({name for trial in trials for name in trial.params})
        found: dict[str, float] = {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        shared = [n for n in names if all(n in trial.params for trial in trials)]
        if shared:
            found = evaluator.evaluate(study, params=shared)
    total = sum(found.values())
    return {name: value / total for name, value in found.items()} if total > 0 else {}


@contextmanager
def open_study(path: Path, request: Request, *, versions: Mapping[str, str]) -> Iterator[Study]:
    """Create the study at `path`, or open it to go on, and keep other drivers out meanwhile.

    Raises StudyError when the request differs from the one the study was started with (the
    differences are shown), when another driver holds it, or when its store is damaged.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise StudyError(f"cannot write to {path}: {error.strerror}") from error
    with lock:
        _take_lock(lock, path)
        old = read_request(path)
        if old is None:
            if (path / "study.db").exists():
                raise StudyError(
                    f"{path} holds a study.db and no study.yaml, which says what its trials were; "
                    "restore it, or start again with another --name"
                )
            content = {**asdict(request), "versions": dict(versions)}
            write_text(path / "study.yaml", yaml.safe_dump(content, sort_keys=False))
        else:
            refuse_changes(path.name, old, request)
        store = _open_store(path, request.budget)
        try:
            store.fail_unfinished()
            yield Study(path, request, store)
        except STORE_ERRORS as error:
            raise StudyError(
                f"cannot write {path / 'study.db'}: {_cause(error)}; once that is mended, "
                f"`{resume_command(path)}` goes on"
            ) from error


def load_study(path: Path) -> Study:
    """Open a study to read it; another process may be running it."""
    request = read_request(path)
    if request is None or not (path / "study.db").is_file():
        raise StudyError(
            f"there is no study at {path}; `kdsearch run --name {path.name}` makes one"
        )
    return Study(path, request, _open_store(path, request.budget))


def _take_lock(lock: IO[str], path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise StudyError(
            f"{path} is being run by another process; wait for it, or give another --name"
        ) from None


def _cause(error: Exception) -> str:
    """Return what the database said, in one line."""
    return str(error.__cause__ or error).splitlines()[0]


def _open_store(path: Path, budget: Budget) -> Store:
    try:
        return Store(path, metrics=("accuracy", budget.axis()))
    except (*STORE_ERRORS, RuntimeError) as error:  # RuntimeError: of another Optuna
        raise StudyError(
            f"cannot open {path / 'study.db'}: {_cause(error)}; move it away to start the study "
            "again"
        ) from error
