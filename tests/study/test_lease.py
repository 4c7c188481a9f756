"""One driver a study, on every database: a second is refused, a dead one's lease runs out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest
from sqlalchemy import Connection
from table_study import opened

from kdsearch.errors import StudyError
from kdsearch.study.lease import (
    EXPIRY_SECONDS,
    Holder,
    Lease,
    database_time,
    holder_of,
    write_holder,
)
from kdsearch.study.storage_url import Storage, inside, read_url
from kdsearch.study.store import Store

ME = Holder.here()
FAR = replace(ME, boot="another", host="far")
HELD_BY_ANOTHER = """
import sys, time
from kdsearch.study.storage_url import Storage, read_url
from kdsearch.study.store import Store
store = Store(Storage(url=read_url(sys.argv[1]), study=sys.argv[2]), metrics=("accuracy", "flops"))
with store.held("table", is_locked=False):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "sqlite":
        return inside(tmp_path)
    url = read_url(request.getfixturevalue("postgres_url"))
    return Storage(url=url, study=f"table-{uuid.uuid4().hex}")


class Take(Protocol):
    def __call__(self, at: float, *, is_locked: bool = False, me: Holder = ME) -> Lease: ...


@pytest.fixture
def take(kept: Storage) -> Iterator[Take]:
    """Return a function that makes leases of one study, at a time that is given."""
    store = Store(kept, metrics=("accuracy", "flops"))
    made: list[Lease] = []

    def lease(at: float, *, is_locked: bool = False, me: Holder = ME) -> Lease:
        made.append(
            Lease(
                store.disk.engine,
                store.study_id,
                where="table",
                is_locked=is_locked,
                clock=lambda _: at,
                me=replace(me, token=str(len(made))),
            )
        )
        return made[-1]

    yield lease
    for one in made:
        one._over.set()


def test_a_second_driver_gets_the_holder_and_the_remedy(take: Take) -> None:
    message = rf"process {os.getpid()} on .+ 20 s ago; .+wait 160 s"
    with take(1000.0), pytest.raises(StudyError, match=message), take(1020.0):
        pass


def test_a_lease_that_was_given_back_is_free_at_once(take: Take) -> None:
    with take(1000.0):
        pass
    with take(1000.0):
        pass


@pytest.mark.parametrize(("age", "is_free"), [(EXPIRY_SECONDS - 1, False), (EXPIRY_SECONDS, True)])
def test_what_runs_elsewhere_keeps_its_lease_until_it_runs_out(
    age: float, is_free: bool, take: Take
) -> None:
    take(1000.0, me=FAR).__enter__()
    refused = nullcontext() if is_free else pytest.raises(StudyError, match="on far")
    with refused, take(1000.0 + age):
        pass


@pytest.mark.parametrize(("ahead", "is_free"), [(EXPIRY_SECONDS - 1, False), (8e9, True)])
def test_a_lease_from_the_far_future_has_run_out(ahead: float, is_free: bool, take: Take) -> None:
    take(1000.0 + ahead, me=FAR).__enter__()
    refused = nullcontext() if is_free else pytest.raises(StudyError, match="alive 0 s ago")
    with refused, take(1000.0):
        pass


def test_who_lost_the_lease_may_not_write(take: Take) -> None:
    lost = take(1000.0, me=FAR).__enter__()
    with take(1000.0 + EXPIRY_SECONDS):
        lost.require()  # it was renewed a moment ago, by this process's clock
        lost._renewed -= EXPIRY_SECONDS
        with pytest.raises(
            StudyError, match="now, since this process did not renew its lease for 180 s"
        ):
            lost.require()
        lost.__exit__(None, None, None)  # gives back nothing: the other still holds it
        with pytest.raises(StudyError, match="is being run"), take(1000.0 + EXPIRY_SECONDS):
            pass


def test_a_process_id_that_was_given_out_again_is_another_process(take: Take) -> None:
    take(1000.0, me=replace(ME, began="1")).__enter__()
    with take(1000.0):
        pass


def test_the_lock_of_the_folder_decides_between_processes_of_one_machine(take: Take) -> None:
    take(1000.0).__enter__()
    with take(1000.0, is_locked=True):
        pass
    take(1000.0, me=FAR).__enter__()
    with pytest.raises(StudyError, match="on far"), take(1000.0, is_locked=True):
        pass


def test_the_holder_keeps_renewing_its_lease(
    kept: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdsearch.study.lease.RENEW_SECONDS", 0.01)
    store, expected = Store(kept, metrics=("accuracy", "flops")), threading.Semaphore(0)

    def clock(connection: Connection) -> float:
        expected.release()
        return database_time(connection)

    given = store.disk.engine, store.study_id
    with Lease(*given, where="table", is_locked=False, clock=clock):
        assert all(expected.acquire(timeout=20) for _ in range(4))


def test_the_clock_is_the_databases_and_goes_with_ours(kept: Storage) -> None:
    store = Store(kept, metrics=("accuracy", "flops"))
    with store.disk.engine.connect() as connection:
        assert database_time(connection) == pytest.approx(time.time(), abs=30)


def test_two_processes_and_a_killed_one(kept: Storage) -> None:
    """The other process holds it; killed, it loses it at once."""
    store = Store(kept, metrics=("accuracy", "flops"))
    arguments = [sys.executable, "-c", HELD_BY_ANOTHER, kept.full_url(), kept.study]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(StudyError, match=f"process {other.pid} on "),
            store.held("table", is_locked=False),
        ):
            pass
        other.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet waited for
        with store.held("table", is_locked=False):
            pass


def test_a_holder_is_this_process() -> None:
    me = Holder.here()
    assert me.is_on_this_machine()
    assert not me.is_dead()
    assert replace(me, pid=2**22 + 1).is_dead()
    assert not replace(me, pid=2**22 + 1, pids="another container").is_dead()
    assert me.token != Holder.here().token


SUSPENDED = """
import os, signal, sys
from pathlib import Path
from table_study import opened
with opened(Path(sys.argv[1])):
    print("held", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
"""


def test_a_suspended_driver_is_named_with_the_ways_to_resume_and_end_it(fast_path: Path) -> None:
    path = fast_path / "suspended"
    line = [sys.executable, "-c", SUSPENDED, str(path)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as holder:
        try:
            os.waitid(os.P_PID, holder.pid, os.WSTOPPED)
            with pytest.raises(StudyError) as refused, opened(path):
                pass
        finally:
            holder.kill()
    ways = f"`kill -CONT {holder.pid}` resumes it, `kill -9 {holder.pid}` ends it"
    assert f"is being run by process {holder.pid} on " in str(refused.value)
    assert f", which is suspended ({ways}); wait for it" in str(refused.value)
    with opened(path):  # ended by the second of these
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": 1}', b"\xff"])
def test_a_lock_without_a_holder_is_that_of_another_process(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / ".lock"
    file.write_bytes(content)
    with file.open("r+") as lock:
        assert holder_of(lock.fileno()) == "another process"
        write_holder(lock.fileno())
        assert holder_of(lock.fileno()) == f"process {os.getpid()} on {ME.host}"
