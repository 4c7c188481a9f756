"""Open a study to run it, which keeps other drivers out, or to read it. No torch here."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import yaml

from kdsearch import atomic
from kdsearch.errors import StudyError
from kdsearch.study.config import FORMAT, StudyConfig, read_config
from kdsearch.study.config_changes import refuse_changes
from kdsearch.study.facts import candidate_digest
from kdsearch.study.lease import holder_of, require_free, write_holder
from kdsearch.study.sampler_check import refuse_sampler
from kdsearch.study.storage_url import (
    DATABASE,
    Access,
    Storage,
    inside,
    is_at,
    kept_url,
    storage_of,
)
from kdsearch.study.store import STORE_ERRORS, Store
from kdsearch.study.study import Digest, OpenStudy
from kdsearch.tasks.base import DEFAULT_METRIC, Metric

_RESULTS = ("trials", "best", "front.json")  # of a study that has begun


@contextmanager
def open_study(
    path: Path,
    config: StudyConfig,
    *,
    versions: Mapping[str, str],
    storage: str | None = None,
    digest: Digest = candidate_digest,
    metric: Metric = DEFAULT_METRIC,
) -> Iterator[OpenStudy]:
    """Create the study at `path`, or open it to resume, and keep other drivers out.

    storage: the URL of the storage with its password, if there is one.
    digest: see OpenStudy.
    Raises StudyError when the configuration differs from that of the study (the differences are
    shown), when another driver holds it, or when its store is damaged.
    """
    with _locked(path, config):
        old = read_config(path)
        kept = storage_of(path, config, storage)
        if old is None:
            refuse_sampler(config)
            _refuse_remains(path)
        else:
            refuse_changes(path.name, old, config)
            _require_database(path, kept)
        is_begun = old is not None
        try:
            with _driven(path, kept, config, metric, "write" if is_begun else "create") as store:
                atomic.remove_left_behind(path)
                if not is_begun:  # last, so that no crash leaves it without its database
                    content = {"format": FORMAT, **asdict(config), "versions": dict(versions)}
                    atomic.write(path / "study.yaml", yaml.safe_dump(content, sort_keys=False))
                    is_begun = True
                yield OpenStudy(path, config, store, digest=digest)
        finally:
            if not is_begun:
                for file in path.glob(f"{DATABASE}*"):
                    file.unlink()


def _refuse_remains(path: Path) -> None:
    """Raise StudyError where a new study would write over the remains of another one."""
    remains = [name for name in _RESULTS if (path / name).exists()]
    if (path / DATABASE).exists():
        with _explained_errors(inside(path)):
            database = Store(inside(path), access="read")
            database.load()
        if remains or database.trials():  # else a crash before study.yaml was written
            remains.insert(0, DATABASE)
    if remains:
        raise StudyError(
            f"{path} holds {', '.join(remains)} and no study.yaml, which holds the study's "
            "configuration; restore it, or start another study with another --name"
        )


def _require_database(path: Path, kept: Storage) -> None:
    if kept.is_inside and not (path / DATABASE).is_file():
        raise StudyError(
            f"{path} has a study.yaml and no {DATABASE}, which holds its trials; restore it, or "
            "start another study with another --name"
        )


@contextmanager
def _driven(
    path: Path, storage: Storage, config: StudyConfig, metric: Metric, access: Access
) -> Iterator[Store]:
    """Open the store as the study's driver; trials of a dead one have failed."""
    with _explained_errors(storage):
        store = Store(storage, metrics=(metric.key, config.budget.axis()), access=access)
    try:
        with store.held(str(path), is_locked=storage.is_inside):
            with _explained_errors(storage):
                store.load()
            store.fail_unfinished()
            yield store
        store.disk.engine.dispose()  # SQLite merges its log
    except STORE_ERRORS as error:
        raise StudyError(
            f"cannot write {storage}: {_cause(error, storage)}; once that is mended, "
            f"{config.how_to_resume(path)}"
        ) from error


def load_study(path: Path, storage: str | None = None, *, access: Access = "read") -> OpenStudy:
    """Open a study to read it; another process may be running it.

    storage: see `open_study`. access: `write` for what is no trial, such as notes; a trial needs
    `open_study`.
    """
    config, kept = find_storage(path, storage)
    with _explained_errors(kept):
        store = Store(kept, access=access)
        store.load()
    return OpenStudy(path, config, store)


def load_each(paths: Sequence[Path], storage: str | None = None) -> list[OpenStudy]:
    """Open several studies to read them. storage: of those that are kept there, one at least."""
    kept = [find_storage(path)[0].storage for path in paths]
    there = [url for url in kept if storage is not None and is_at(url, storage)]
    return [
        load_study(path, storage if url in there or not there else None)
        for path, url in zip(paths, kept, strict=True)
    ]


def refuse_driven(path: Path, config: StudyConfig, storage: str | None) -> None:
    """Raise StudyError where another driver has the study, before anything is loaded.

    Nothing is written. `open_study` looks again.
    """
    if (path / ".lock").exists():
        with _locked(path, config):
            pass
    kept = _existing_storage(path, config, storage)
    with _explained_errors(kept):
        require_free(kept, where=str(path))


def reach(
    path: Path,
    config: StudyConfig,
    storage: str | None,
    metric: Metric = DEFAULT_METRIC,
    *,
    is_new: bool = True,
) -> None:
    """Raise StudyError where the study's storage is out of reach, before anything is trained."""
    kept = storage_of(path, config, storage)
    if not kept.is_inside:
        with _explained_errors(kept):
            access: Access = "create" if is_new else "write"
            Store(kept, metrics=(metric.key, config.axis()), access=access)


def find_storage(path: Path, storage: str | None = None) -> tuple[StudyConfig, Storage]:
    """Return the request of the study at `path` and where its trials are."""
    config = require_config(path)
    return config, _existing_storage(path, config, storage)


def require_config(path: Path) -> StudyConfig:
    """Return what `study.yaml` holds. Raises StudyError where there is none."""
    config = read_config(path)
    if config is None:
        raise StudyError(
            f"there is no study at {path}; `kdsearch run --name {path.name}` makes one"
        )
    return config


def _existing_storage(path: Path, config: StudyConfig, storage: str | None) -> Storage:
    """Return where the trials of a study are. Raises StudyError where it has none there."""
    kept_url(storage, config.storage, is_new=False)
    kept = storage_of(path, config, storage)
    _require_database(path, kept)
    return kept


@contextmanager
def _locked(path: Path, config: StudyConfig) -> Iterator[None]:
    """Hold the lock on the study's folder, which is made where there is none."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = os.fdopen(os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666))
    except OSError as error:
        raise StudyError(f"cannot write to {path}: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder, name = holder_of(lock.fileno()), config.flag("name")
            raise StudyError(
                f"{path} is being run by {holder}; wait for it, end it, or give another {name}"
            ) from None
        try:
            write_holder(lock.fileno())
        except OSError as error:
            raise StudyError(f"cannot write to {path}: {error.strerror}") from error
        yield


def _cause(error: Exception, storage: Storage) -> str:
    """Return the database's message, in one line and without a password."""
    return storage.without_password(str(error.__cause__ or error).splitlines()[0])


@contextmanager
def _explained_errors(storage: Storage) -> Iterator[None]:
    """Turn an error at opening a database into a StudyError with advice."""
    try:
        yield
    except (*STORE_ERRORS, RuntimeError, json.JSONDecodeError) as error:  # of another Optuna
        cause = _cause(error, storage)
        advice = "are its host, port and database right, and does a server listen there?"
        if "readonly" in cause:
            advice = "the folder is read-only; copy it to one that you may write"
        elif storage.is_inside:
            advice = "restore it from a copy, or start another study with another --name"
        elif storage.url.get_backend_name() == "sqlite":
            advice = "is its folder there, and may you write in it?"
        elif "password" in cause:  # so do PostgreSQL and MySQL say that one is missing or wrong
            advice = "give --storage with the right password, or PGPASSWORD or ~/.pgpass"
        raise StudyError(f"cannot open {storage}: {cause}; {advice}") from error
