"""Where a study's trials are kept: any SQLAlchemy URL, whose password is written nowhere.

A URL is shown, kept and compared without its password. A user who resumes a study gives it again,
or sets it for the database (PGPASSWORD, ~/.pgpass). SQLAlchemy is imported with the first URL.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, quote_plus

from kdsearch.errors import SpecError, StudyError, did_you_mean
from kdsearch.extras import install
from kdsearch.study.config import StudyConfig

if TYPE_CHECKING:
    from sqlalchemy import URL

# What `postgresql` alone means differs between versions of SQLAlchemy.
_DRIVERS = {"postgresql": "postgresql+psycopg", "postgres": "postgresql+psycopg"}
_INSTALL = {"postgresql": install("postgres")}
_KNOWN = ("sqlite", "postgresql", "mysql", "mariadb")
DATABASE = "study.db"  # in the study's own folder
Access = Literal["create", "write", "read"]  # write: what is there; read: nothing is written


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """A database, and the name of the study in it; it prints without the password.

    is_inside: whether it lies in the study's own folder. Then the folder's lock guards it too, and
    it holds one study, whatever its name: a folder may be renamed or copied.
    """

    url: URL
    study: str
    is_inside: bool = False

    def __str__(self) -> str:
        return str(self.url.database) if self.is_inside else shown(self.url)

    def full_url(self) -> str:
        """Return the URL with its password, for the database alone."""
        return self.url.render_as_string(hide_password=False)

    def engine_options(self, access: Access = "write") -> dict[str, object]:
        """Return the options of SQLAlchemy's engine."""
        if self.url.get_backend_name() != "sqlite":
            return {"pool_pre_ping": True}  # a server may have closed what was idle
        if self.url.query:
            return {"connect_args": {"timeout": 30}}
        uri = f"file:{quote(str(self.url.database))}?{self._sqlite_mode(access)}"
        connect = partial(sqlite3.connect, uri, uri=True, timeout=30, check_same_thread=False)
        return {"creator": connect}

    def _sqlite_mode(self, access: Access) -> str:
        """Return SQLite's mode. Without a log, what is read has no writer, and needs no lock."""
        if access == "read":
            return "mode=ro" if self._log().exists() else "immutable=1"
        return "mode=rwc" if access == "create" else "mode=rw"

    def _log(self, suffix: str = "-wal") -> Path:
        return Path(f"{self.url.database}{suffix}")

    def is_unreadable_there(self) -> bool:
        """Return whether SQLite cannot read a log that a killed driver left in this folder.

        It needs an index next to the log, which it may not make in a folder that is read-only.
        """
        if not self.is_inside or not self._log().exists() or self._log("-shm").exists():
            return False
        return not os.access(self._log().parent, os.W_OK)

    def copied(self, folder: str) -> Storage:
        """Copy a study's file to another folder, and return that storage."""
        copy = inside(Path(folder))
        for suffix in ("", "-wal"):
            if self._log(suffix).exists():
                shutil.copyfile(self._log(suffix), copy._log(suffix))
        return copy

    def without_password(self, text: str) -> str:
        """Return a text, such as a driver's message, without the password."""
        password = str(self.url.password or "")
        for written in {password, quote(password), quote_plus(password)} - {""}:
            text = text.replace(written, "***")
        return text


def inside(path: Path) -> Storage:
    """Return the storage in the study's own folder: SQLite. A new study there has its name."""
    from sqlalchemy import URL

    return Storage(
        url=URL.create("sqlite", database=str(path / DATABASE)), study=path.name, is_inside=True
    )


def storage_of(path: Path, config: StudyConfig, given: str | None) -> Storage:
    """Return the storage of the study at `path`.

    given: the URL in `config` with its password, if there is one.
    """
    if config.storage is None:
        return inside(path)
    url = read_url(config.storage if given is None else given)
    if url.password == "***":
        url = url._replace(password=None)
    return Storage(url=url, study=config.storage_study or path.name)


def read_url(text: str) -> URL:
    """Read `--storage`. Raises SpecError, which does not repeat what may hold a password."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    accepted = (
        "expected an SQLAlchemy URL, as postgresql://user@host/database or sqlite:///path/file.db"
    )
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise SpecError(f"--storage: {accepted}; a password's special characters as %XX") from None
    url = url.set(drivername=_DRIVERS.get(url.drivername, url.drivername))
    hidden = next((key for key in url.query if "pass" in key and key != "passfile"), None)
    if hidden is not None:
        raise SpecError(
            f"--storage: {hidden!r} after the '?' would be kept in study.yaml; give it as "
            "user:password@host, or in PGPASSWORD"
        )
    try:
        url.get_dialect()
    except NoSuchModuleError:
        backend = url.get_backend_name()
        hint = did_you_mean(backend, _KNOWN)
        raise SpecError(f"--storage: unknown database {backend!r}{hint}; {accepted}") from None
    if not url.database or url.database == ":memory:":
        raise SpecError(f"--storage {shown(url)}: it names no database; {accepted}")
    _require_driver(url)
    return url


def _require_driver(url: URL) -> None:
    try:
        url.get_dialect().import_dbapi()
    except ImportError as error:
        name = url.get_backend_name()
        install = _INSTALL.get(name, f"pip install {error.name or url.get_driver_name()}")
        raise SpecError(f"--storage: {name} needs {url.get_driver_name()}: {install}") from error


def shown(url: URL) -> str:
    """Return a URL without its password."""
    return url.render_as_string(hide_password=True)


def place(url: URL) -> tuple[object, ...]:
    """Return the location of a database, without user, driver and password."""
    host, port = (getattr(url, name) or url.query.get(name) for name in ("host", "port"))
    return url.get_backend_name(), host, port, url.database


def is_at(kept: str | None, given: str) -> bool:
    """Whether both URLs name one database, for any user."""
    return kept is not None and place(read_url(kept)) == place(read_url(given))


def kept_url(given: str | None, old: str | None, *, is_new: bool) -> str | None:
    """Return the storage for `study.yaml`, after the user gave one or none.

    Another user, driver or password of the same place is no other storage. Raises StudyError for a
    study that is kept elsewhere.
    """
    if given is None:
        return old
    url = read_url(given)
    if is_new:
        return shown(url)
    if not is_at(old, given):
        raise StudyError(
            f"the study's trials are in {old or 'its own study.db'}, not in {shown(url)}; leave "
            "--storage out to resume it, or give another --name"
        )
    return old
