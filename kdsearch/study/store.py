"""The trials of a study in an Optuna storage, `study.db` by default, and a mirror in memory.

It is a normal Optuna study, which optuna-dashboard may read at any moment. The driver alone writes
it and holds its lease, so sampling from the mirror costs no query. A trial is proposed in the
mirror and begins on disk; it ends on disk and then in the mirror. One thread writes; any may read.
"""

from __future__ import annotations

import sqlite3
import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import optuna
from optuna.distributions import BaseDistribution, CategoricalChoiceType
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from kdsearch.errors import StudyError
from kdsearch.study.lease import Lease
from kdsearch.study.storage_url import Access, Storage

NOTE = "kdsearch"  # the user attribute of a trial, and of the study, that is read: JSON
STORE_ERRORS = (
    SQLAlchemyError,
    sqlite3.Error,
    optuna.exceptions.StorageInternalError,
    optuna.exceptions.UpdateFinishedTrialError,  # by another driver
)
_DIRECTIONS = [StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE]


@contextmanager
def experimental_is_fine() -> Iterator[None]:
    """Silence Optuna's note on what it has called experimental for years."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield


class Store:
    """The open store of a study. Then comes `load`.

    disk, study_id: Optuna's storage and the study's key there. metrics: what a new study
    maximises and minimises, by name. access: only `create` makes a study where there is none;
    `read` writes nothing.
    Raises StudyError without the study, one of STORE_ERRORS, or a RuntimeError where another
    version of Optuna wrote it.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        metrics: tuple[str, str] | None = None,
        access: Access = "create",
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if access == "read" and storage.is_unreadable_there():
            copy = TemporaryDirectory(prefix="kdsearch-")
            weakref.finalize(self, copy.cleanup)
            storage, access = storage.copied(copy.name), "write"
        is_new = access == "create"
        self.disk = RDBStorage(
            storage.full_url(),
            engine_kwargs=storage.engine_options(access),
            skip_table_creation=not is_new,
        )
        weakref.finalize(self, self.disk.engine.dispose)
        if self.disk.engine.dialect.name == "sqlite" and access != "read":
            event.listen(self.disk.engine, "connect", _relax)
            self.disk.engine.dispose()
        if is_new:
            study = optuna.create_study(
                study_name=storage.study,
                storage=self.disk,
                directions=_DIRECTIONS,
                load_if_exists=True,
            )
            if metrics is not None and study.metric_names is None:
                with experimental_is_fine():
                    study.set_metric_names(list(metrics))
        self.study_id = self._find(storage)
        self._lease: Lease | None = None

    def _find(self, storage: Storage) -> int:
        """Return the key of the study. Raises StudyError where it is not there."""
        studies = self.disk.get_all_studies()
        if not storage.is_inside:
            studies = [study for study in studies if study.study_name == storage.study]
        if len(studies) != 1:
            names = ", ".join(study.study_name for study in studies)
            what = f"{len(studies)} studies ({names})" if names else "no study"
            which = "" if storage.is_inside else f" named {storage.study!r}"
            raise StudyError(
                f"{storage} holds {what}{which}; expected one. Restore it from a copy, or start "
                "another study"
            )
        return studies[0]._study_id

    def load(self) -> None:
        """Read every trial into the mirror.

        A damaged page shows now, or in the middle of a search.
        """
        kept = self.disk.get_all_trials(self.study_id, deepcopy=False)
        self._memory = InMemoryStorage()
        self._mirror = optuna.create_study(storage=self._memory, directions=_DIRECTIONS)
        self._mirror.add_trials(kept)

    @contextmanager
    def held(self, where: str, *, is_locked: bool) -> Iterator[None]:
        """Hold the study's lease, as its driver. See Lease."""
        engine = self.disk.engine
        with Lease(engine, self.study_id, where=where, is_locked=is_locked) as self._lease:
            yield

    def trials(self) -> list[FrozenTrial]:
        """Return every trial, oldest first; they are not to be changed."""
        return self._mirror.get_trials(deepcopy=False)

    def propose(
        self,
        sampler: BaseSampler,
        fixed: Mapping[str, CategoricalChoiceType] | None = None,
    ) -> Trial:
        """Return a trial in which the sampler suggests parameters; call `begin` next.

        fixed: parameters that are not sampled.
        """
        self._mirror.sampler = sampler
        if fixed:
            self._mirror.enqueue_trial(dict(fixed))
        return self._mirror.ask()

    def learn(self, trial: Trial, name: str, distribution: BaseDistribution, value: float) -> None:
        """Give a proposed trial a parameter that its sampler did not suggest."""
        inner = distribution.to_internal_repr(value)
        self._memory.set_trial_param(trial._trial_id, name, inner, distribution)

    def begin(self, trial: Trial, note: str) -> None:
        """Write a proposed trial, running, with its parameters and its note.

        Raises StudyError when the file has trials that the mirror has not.
        """
        self._require_lease()
        trial.set_user_attr(NOTE, note)
        proposed = self.trials()[trial.number]
        begun = create_trial(
            state=TrialState.RUNNING,
            params=proposed.params,
            distributions=proposed.distributions,
            user_attrs={NOTE: note},
            system_attrs=proposed.system_attrs,  # NSGA-II keeps its generation there
        )
        disk_id = self.disk.create_new_trial(self.study_id, template_trial=begun)
        if disk_id != self._disk_id(trial.number):
            raise StudyError("another program has added trials to the study; run it again")

    def end(
        self,
        number: int,
        state: TrialState,
        values: Sequence[float] | None,
        *,
        note: str,
        constraints: Mapping[str, float],
        facts: Mapping[str, float | str] | None = None,
    ) -> FrozenTrial:
        """Write the outcome of a running trial, its state after everything that samplers read.

        facts: user attributes on disk for optuna-dashboard; nothing here reads them.
        """
        self._require_lease()
        memory_id = self.trials()[number]._trial_id
        both = ((self.disk, self._disk_id(number)), (self._memory, memory_id))
        attrs = create_trial(state=TrialState.RUNNING, constraints=dict(constraints)).system_attrs
        if constraints:  # optuna-dashboard 0.21 reads only the older list
            attrs["constraints"] = list(constraints.values())
        for name, value in (facts or {}).items():
            self.disk.set_trial_user_attr(both[0][1], name, value)
        for storage, key in both:
            storage.set_trial_user_attr(key, NOTE, note)
            for name, value in attrs.items():
                storage.set_trial_system_attr(key, name, value)
        for storage, key in both:
            storage.set_trial_state_values(key, state, values)
        return self.trials()[number]

    def fail_unfinished(self) -> None:
        """Fail the trials that a dead driver left running, or that somebody enqueued in Optuna."""
        for trial in self.trials():
            if not trial.state.is_finished():
                self.disk.set_trial_state_values(self._disk_id(trial.number), TrialState.FAIL)
                self._memory.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def _require_lease(self) -> None:
        if self._lease is not None:
            self._lease.require()

    def _disk_id(self, number: int) -> int:
        return self.disk.get_trial_id_from_study_id_trial_number(self.study_id, number)

    def set_facts(self, facts: Mapping[str, float | str]) -> None:
        """Write changed user attributes of the study for optuna-dashboard."""
        known = self.disk.get_study_user_attrs(self.study_id)
        for name, value in facts.items():
            if known.get(name) != value:
                self.disk.set_study_user_attr(self.study_id, name, value)

    def note(self) -> str | None:
        """Return the note of the study as a whole."""
        note: str | None = self.disk.get_study_user_attrs(self.study_id).get(NOTE)
        return note

    def set_note(self, note: str) -> None:
        """Replace the note of the study as a whole."""
        self.disk.set_study_user_attr(self.study_id, NOTE, note)


def _relax(connection: sqlite3.Connection, _record: object) -> None:
    """Log ahead: a commit need not wait for the disk, and a crash loses none of those before it.

    A trial makes five commits, of 9 ms each with SQLite's default.
    """
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
