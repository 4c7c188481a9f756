"""Single-writer lease of a study; it expires when its owner dies.

The lock on the study's folder keeps out a second driver that sees the same folder. The lease, in
the store, keeps out one on another machine. It names its holder and the last time that was alive,
by the database's clock. A thread renews it.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import sqlalchemy
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from kdsearch.documents import parse_json
from kdsearch.errors import StudyError
from kdsearch.study.storage_url import Storage

LEASE = "kdsearch:lease"  # a user attribute of the study
RENEW_SECONDS = 30.0
EXPIRY_SECONDS = 180.0
_MOST = 10_000  # bytes of a lock file
Clock = Callable[[Connection], float]
_log = logging.getLogger(__name__)
_studies = sqlalchemy.table("studies", *map(sqlalchemy.column, ("study_id", "study_name")))
_attributes = sqlalchemy.table(
    "study_user_attributes", *map(sqlalchemy.column, ("study_id", "key", "value_json"))
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that drives a study.

    boot: of the machine; pids: the name space of its process ids. began: the start of the process
    in the machine's own ticks, since ids are given out again. token: of this one holding.
    """

    host: str
    boot: str
    pids: str
    pid: int
    began: str
    token: str

    @classmethod
    def here(cls) -> Holder:
        """Return this process, with a token of its own."""
        return cls(
            host=socket.gethostname(),
            boot=_boot(),
            pids=_pids(),
            pid=os.getpid(),
            began=_began(os.getpid()) or "",
            token=uuid.uuid4().hex,
        )

    def is_on_this_machine(self) -> bool:
        """Whether it runs, or ran, since this machine was started."""
        return bool(self.boot) and self.boot == _boot()

    def is_dead(self) -> bool:
        """Whether the process has certainly ended; on another machine it is unknown, so False."""
        if not self._is_visible():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        began = _began(self.pid)
        return began is not None and began != self.began

    def where(self) -> str:
        """Return "process 7 on HOST", and how the user resumes or ends it here if suspended."""
        place = f"process {self.pid} on {self.host}"
        if not self.is_alive() or _stat(self.pid)[:1] != ["T"]:
            return place
        kill = f"`kill -CONT {self.pid}` resumes it, `kill -9 {self.pid}` ends it"
        return f"{place}, which is suspended ({kill})"

    def is_alive(self) -> bool:
        """Return whether it is another process here that certainly still runs."""
        return self._is_visible() and self.pid != os.getpid() and not self.is_dead()

    def _is_visible(self) -> bool:
        """Return whether this process sees that one by its number, if it runs."""
        return self.is_on_this_machine() and self.pids == _pids()


class Lease:
    """The lease of one study, held from entering to leaving.

    Entering raises StudyError where another driver has it.
    is_locked: this process holds the lock that any driver on this machine would hold, so a holder
    named from this machine is dead, unless it is seen to run: somebody deleted its lock. clock:
    seconds, the same for all who share the database.
    """

    def __init__(
        self,
        engine: Engine,
        study_id: int,
        *,
        where: str,
        is_locked: bool,
        clock: Clock | None = None,
        me: Holder | None = None,
    ) -> None:
        self._engine = engine
        self._study_id = study_id
        self._where = where
        self._is_locked = is_locked
        self._clock = clock or database_time
        self._me = me or Holder.here()
        self._renewed = time.monotonic()
        self._over = threading.Event()

    def require_free(self) -> None:
        """Raise StudyError where another driver has it; nothing is written."""
        with self._engine.connect() as connection:
            self._may_take(*_held(self._text(connection), self._clock(connection)))

    def __enter__(self) -> Lease:
        """Take the lease, and begin to renew it."""
        self._write(self._may_take)
        threading.Thread(target=self._keep, daemon=True, name="lease").start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the lease back; one that cannot be given back runs out."""
        self._over.set()
        with suppress(SQLAlchemyError, StudyError):
            self._write(self._require_mine, is_last=True)

    def require(self) -> None:
        """Renew a lease that was not renewed in time, before anything is written.

        Raises StudyError if another driver has taken it, because this process was stopped or the
        database was out of reach.
        """
        if time.monotonic() - self._renewed > EXPIRY_SECONDS / 2:
            self.renew()

    def renew(self) -> None:
        """Renew the lease. Raises StudyError if this process no longer holds it."""
        self._write(self._require_mine)

    def _keep(self) -> None:
        while not self._over.wait(RENEW_SECONDS):
            try:
                self.renew()
            except (SQLAlchemyError, StudyError) as error:  # `require` raises it in the driver
                _log.warning(
                    "the lease of the study was not renewed: %s", str(error).split("\n")[0]
                )

    def _write(
        self, check: Callable[[Holder | None, float], None], *, is_last: bool = False
    ) -> None:
        """Read the lease, check who holds it, and write it, in one transaction.

        The write that comes first, of nothing new, keeps any other driver out until the end.
        """
        with self._engine.begin() as connection:
            same = {"study_id": self._study_id}
            connection.execute(_studies.update().where(_studies.c.study_id == self._study_id), same)
            now = self._clock(connection)
            text = self._text(connection)
            check(*_held(text, now))
            value = json.dumps(None if is_last else {"holder": asdict(self._me), "time": now})
            if text is None:
                row = {"study_id": self._study_id, "key": LEASE, "value_json": value}
                connection.execute(_attributes.insert(), row)
            else:
                connection.execute(_attributes.update().where(*self._here()), {"value_json": value})
        self._renewed = time.monotonic()

    def _text(self, connection: Connection) -> str | None:
        """Return what stands in the database; None where no driver ever had the study."""
        query = sqlalchemy.select(_attributes.c.value_json).where(*self._here())
        text: str | None = connection.scalar(query)
        return text

    def _here(self) -> tuple[sqlalchemy.ColumnElement[bool], ...]:
        return _attributes.c.study_id == self._study_id, _attributes.c.key == LEASE

    def _may_take(self, holder: Holder | None, age: float) -> None:
        # A time far ahead means that the clock was set back: a living holder renews its lease.
        if holder is None or abs(age) >= EXPIRY_SECONDS or holder.is_dead():
            return
        if self._is_locked and holder.is_on_this_machine() and not holder.is_alive():
            return
        raise StudyError(
            f"{self._where} is being run by {holder.where()}, alive {max(age, 0):.0f} s ago; end "
            f"that one, wait {EXPIRY_SECONDS - age:.0f} s if it is dead, or run another study"
        )

    def _require_mine(self, holder: Holder | None, age: float) -> None:
        if holder != self._me:
            taken = "no process" if holder is None else f"process {holder.pid} on {holder.host}"
            raise StudyError(
                f"{self._where} is run by {taken} now, since this process did not renew its "
                f"lease for {EXPIRY_SECONDS:.0f} s; nothing that ended before is lost"
            )


def write_holder(lock: int) -> None:
    """Write this process into an open lock file, for the message to a driver that it keeps out."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, json.dumps(asdict(Holder.here())).encode(), 0)


def holder_of(lock: int) -> str:
    """Return the process that holds an open lock file, in words."""
    try:
        return Holder(**parse_json(os.pread(lock, _MOST, 0))).where()
    except (OSError, ValueError, TypeError):
        return "another process"


def require_free(storage: Storage, *, where: str) -> None:
    """Raise StudyError where a driver holds the lease of a study; nothing is written."""
    engine = sqlalchemy.create_engine(storage.url, **storage.engine_options("read"))
    named = sqlalchemy.select(_studies.c.study_id)
    if not storage.is_inside:
        named = named.where(_studies.c.study_name == storage.study)
    try:
        if not sqlalchemy.inspect(engine).has_table(_attributes.name):
            return
        with engine.connect() as connection:
            study_id = connection.scalar(named)
        if study_id is not None:
            Lease(engine, study_id, where=where, is_locked=storage.is_inside).require_free()
    finally:
        engine.dispose()


def _held(text: str | None, now: float) -> tuple[Holder | None, float]:
    """Return who holds a lease, and the seconds since that was last alive."""
    try:
        found = parse_json(text) if text else None
        return (Holder(**found["holder"]), now - found["time"]) if found else (None, 0.0)
    except (ValueError, TypeError, KeyError) as error:
        raise StudyError(
            f"the lease of the study is damaged, or a newer kdsearch wrote it: {error!r}; restore "
            "the study from a copy"
        ) from error


def database_time(connection: Connection) -> float:
    """Return the seconds on the database's clock, which its drivers share."""
    now = connection.scalar(sqlalchemy.select(sqlalchemy.func.current_timestamp()))
    if isinstance(now, str):
        now = datetime.fromisoformat(now)
    assert isinstance(now, datetime)
    return (now if now.tzinfo else now.replace(tzinfo=UTC)).timestamp()


def _boot() -> str:
    """Return what names this start of the machine, empty where that is not known."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _pids() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _began(pid: int) -> str | None:
    """Return when a process began, in ticks of the machine; None where that is not known.

    One that ended and was not yet waited for has no beginning that any other has.
    """
    fields = _stat(pid)
    if not fields:
        return None
    return "ended" if fields[0] in "ZX" else fields[19]


def _stat(pid: int) -> list[str]:
    """Return the state of a process, and what Linux states after it; nothing where unknown."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return stat.rpartition(")")[2].split()  # the name in brackets may hold anything
