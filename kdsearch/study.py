"""A study on disk: its request, its Optuna storage, and what is asked of and told to it.

`study.db` is the one truth about trials and is written by the driver alone; `study.yaml` holds the
request and is written once. Everything about a trial that Optuna has no place for is one JSON
user attribute. No torch here.
"""

from __future__ import annotations

import fcntl
import json
import math
import sqlite3
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO

import optuna
import yaml
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from kdsearch import pareto
from kdsearch.errors import StudyError
from kdsearch.request import (
    Request,
    read_request,
    refuse_changes,
    resume_command,
    write_text,
)
from kdsearch.space import Choice, Float, Int, Params, Value
from kdsearch.spec import Budget, Candidate, Cost, TrialRecord, digest_of

RECORD = "kdsearch"
FACTS = "kdsearch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A trial to run: its number, its parameters and the Optuna trial to tell the outcome to.

    reuse: an earlier complete trial of the same candidate, whose outcome stands.
    """

    trial: Trial
    params: Params
    digest: str
    reuse: TrialRecord | None = None
    control_of: int | None = None

    @property
    def number(self) -> int:
        """Return the trial's number in the study."""
        return int(self.trial.number)


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


class Study:
    """An open study. Use `open_study`, which holds the lock that keeps a second driver out."""

    def __init__(self, path: Path, request: Request, store: optuna.Study) -> None:
        self.path = path
        self.name = path.name
        self.request = request
        self.budget = request.budget
        self._space = request.search_space()
        self._optuna = store

    def ask(self) -> Asked:
        """Return the next trial, drawn by a sampler seeded with (seed, trials so far).

        A sampler for each trial makes a resumed study propose what an uninterrupted one would.
        """
        records = self.records()
        self._optuna.sampler = _sampler(self.request.seed, len(searched(records)))
        trial = self._optuna.ask()
        params = self._space.walk(partial(_suggest, trial))
        digest = Candidate.from_params(params).digest()
        return self._note(Asked(trial=trial, params=params, digest=digest), records)

    def ask_control(self, params: Params, control_of: int) -> Asked:
        """Return a trial outside the search: the student of `control_of`, taught otherwise.

        It has no Optuna parameters, so that the sampler does not learn from it.
        """
        trial = self._optuna.ask()
        digest = Candidate.from_params(params).digest()
        asked = Asked(trial=trial, params=params, digest=digest, control_of=control_of)
        return self._note(asked, self.records())

    def _note(self, asked: Asked, records: Sequence[TrialRecord]) -> Asked:
        equal = (r for r in records if r.digest == asked.digest and r.state == "complete")
        reuse = next((r for r in equal if r.reused_from is None), None)
        self._write(asked, {})
        return Asked(
            trial=asked.trial,
            params=asked.params,
            digest=asked.digest,
            reuse=reuse,
            control_of=asked.control_of,
        )

    def _write(self, asked: Asked, outcome: Mapping[str, object]) -> None:
        record = {
            "params": dict(asked.params),
            "digest": asked.digest,
            "control_of": asked.control_of,
            **outcome,
        }
        asked.trial.set_user_attr(RECORD, json.dumps(record))

    def tell(self, asked: Asked, outcome: Outcome) -> TrialRecord:
        """Store how a trial ended; constraints go in before the values, as the sampler needs.

        A complete trial whose accuracy is not a number becomes a failed one.
        """
        if outcome.val is not None and not math.isfinite(outcome.val):
            reason = f"the accuracy is {outcome.val}"
            outcome = replace(outcome, state="failed", val=None, reason=reason)
        kept = asdict(outcome)
        if asked.reuse is not None:
            kept["reused_from"] = asked.reuse.number
        self._write(asked, kept)
        for name, violation in outcome.violations.items():
            asked.trial.set_constraint(name, violation)
        if outcome.violations:
            # optuna-dashboard 0.21 reads only the older list of constraints.
            asked.trial.storage.set_trial_system_attr(
                asked.trial._trial_id, "constraints", list(outcome.violations.values())
            )
        if outcome.state == "complete":
            assert outcome.val is not None
            assert outcome.cost is not None
            values = [outcome.val, float(getattr(outcome.cost, self.budget.axis()))]
            frozen = self._optuna.tell(asked.trial, values)
        else:
            failed = outcome.state == "failed"
            frozen = self._optuna.tell(
                asked.trial, state=TrialState.FAIL if failed else TrialState.PRUNED
            )
        return _record(frozen)

    def records(self) -> list[TrialRecord]:
        """Return every trial, oldest first."""
        return [_record(frozen) for frozen in self._optuna.get_trials(deepcopy=False)]

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
        done = self._optuna.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        done = [trial for trial in done if trial.params]
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
        text = self._optuna.user_attrs.get(FACTS, "{}")
        facts: dict[str, object] = json.loads(text)
        return facts

    def note(self, **facts: object) -> None:
        """Add to the study's facts; an equal name replaces the old value."""
        self._optuna.set_user_attr(FACTS, json.dumps({**self.facts(), **facts}))

    def close_interrupted(self) -> None:
        """Fail the trials that a driver left running when it died; they are drawn again."""
        for frozen in self._optuna.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._optuna.tell(frozen.number, state=TrialState.FAIL)


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
    TrialState.COMPLETE: ("complete",),
    TrialState.PRUNED: ("infeasible", "pruned"),
    TrialState.FAIL: ("failed",),
}


def _record(frozen: FrozenTrial) -> TrialRecord:
    """Read a trial; one that Optuna calls failed and we do not was interrupted.

    It may hold an outcome: the driver was killed after noting it and before telling Optuna.
    """
    kept = json.loads(frozen.user_attrs.get(RECORD, '{"params": {}}'))
    cost = kept.pop("cost", None)
    curve = tuple(kept.pop("curve", ()))
    told = kept.get("state")
    if told not in _TOLD.get(frozen.state, ()):
        kept["state"] = _STATES[frozen.state]
    return TrialRecord(
        number=frozen.number, cost=Cost(**cost) if cost else None, curve=curve, **kept
    )


def _suggest(trial: Trial, name: str, dim: Float | Int | Choice) -> Value:
    if isinstance(dim, Float):
        return trial.suggest_float(name, dim.low, dim.high, log=dim.log, step=dim.step)
    if isinstance(dim, Int):
        return trial.suggest_int(name, dim.low, dim.high, log=dim.log, step=dim.step)
    value = trial.suggest_categorical(name, dim.options)
    assert value is not None
    return value


@contextmanager
def _experimental_is_fine() -> Iterator[None]:
    """Silence Optuna's note on what it has called experimental for years."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


def _sampler(seed: int, number: int) -> TPESampler:
    """Return the sampler of one trial.

    No constant liar while one trial runs at a time: it would change nothing and read the database
    17 times a trial, 93 ms instead of 52 at 100 trials.
    """
    with _experimental_is_fine():
        return TPESampler(
            multivariate=True,
            group=True,
            constant_liar=False,
            seed=int(digest_of([seed, number]), 16) % 2**32,
        )


def _ped_anova(study: optuna.Study) -> dict[str, float]:
    with _experimental_is_fine():
        names = sorted({name for trial in study.trials for name in trial.params})
        found: dict[str, float] = {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        shared = [n for n in names if all(n in trial.params for trial in study.trials)]
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
        study = Study(path, request, _open_store(path, request.budget))
        try:
            study.close_interrupted()
            yield study
        except _STORE_ERRORS as error:
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


def storage_url(path: Path) -> str:
    """Return the SQLAlchemy URL of a study's store."""
    return f"sqlite:///{path / 'study.db'}"


def _relax(connection: sqlite3.Connection, _record: object) -> None:
    """Log ahead: a commit need not wait for the disk, and a crash loses none of those before it.

    A trial makes about 20 commits, of 9 ms each with SQLite's default.
    """
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")


_STORE_ERRORS = (SQLAlchemyError, sqlite3.Error, optuna.exceptions.StorageInternalError)


def _cause(error: Exception) -> str:
    """Return what the database said, in one line."""
    return str(error.__cause__ or error).splitlines()[0]


def _open_store(path: Path, budget: Budget) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file = path / "study.db"
    try:
        storage = optuna.storages.RDBStorage(
            storage_url(path), engine_kwargs={"connect_args": {"timeout": 30}}
        )
        event.listen(storage.engine, "connect", _relax)
        storage.engine.dispose()
        study = optuna.create_study(
            study_name=path.name,
            storage=storage,
            directions=["maximize", "minimize"],
            load_if_exists=True,
        )
        if study.metric_names is None:
            with _experimental_is_fine():
                study.set_metric_names(["accuracy", budget.axis()])
        study.get_trials(deepcopy=False)  # a damaged page shows now, or in the middle of a search
    except (*_STORE_ERRORS, RuntimeError) as error:  # RuntimeError: of another Optuna
        raise StudyError(
            f"cannot open {file}: {_cause(error)}; move it away to start the study again"
        ) from error
    return study
