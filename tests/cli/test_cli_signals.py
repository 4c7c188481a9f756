"""A study that is interrupted, killed or run twice: nothing is lost, nothing is done twice."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import SPACE, Shell, ended_trials, run_line, start
from table_study import opened, run_to

SLOW = SPACE.replace("epochs: 1", "epochs: 4")


@pytest.fixture(autouse=True)
def hears_hang_ups() -> Iterator[None]:
    """Let children hear SIGHUP, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def _wait_for_trial(study: Path, seconds: float = 300) -> None:
    """Wait until a trial is running."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(sqlite3.OperationalError):  # there is no such table yet
            store = sqlite3.connect(f"file:{study / 'study.db'}?mode=ro", uri=True)
            with contextlib.closing(store):
                if store.execute("SELECT 1 FROM trials WHERE state = 'RUNNING'").fetchone():
                    return
        time.sleep(0.02)
    raise AssertionError(f"no trial of {study} began within {seconds} s")


def _wait_for(process: subprocess.Popen[str], line: str) -> None:
    """Wait until the process has printed that line."""
    assert process.stdout is not None
    for text in process.stdout:
        if text.startswith(line):
            return
    raise AssertionError(process.communicate()[1])


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(signal.SIGINT, id="ctrl-c"),
        pytest.param(signal.SIGTERM, id="sigterm", marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, id="sighup", marks=pytest.mark.slow),
    ],
)
def test_interrupted_study_names_the_command_to_resume(shell: Shell, stop: signal.Signals) -> None:
    name = f"stopped-{stop.name}"
    line = run_line(shell.out, shell.folder, "--name", name, "--trials", "400", space=SLOW)
    with start(line) as driver:
        _wait_for(driver, "1 of 400, trial")
        # A second driver of the same study is refused while the first goes on.
        assert f"is being run by process {driver.pid} on " in shell.refused("run", "--name", name)
        requested = time.perf_counter()
        driver.send_signal(stop)
        _, message = driver.communicate(timeout=300)
        assert time.perf_counter() - requested < 30
    assert driver.returncode == 130
    assert f"`kdsearch run --name {name} --out {shell.out}` resumes the study" in message
    kept = re.search(r"(\d+) of 400 trials are kept", message)
    assert kept is not None
    front = json.loads((shell.out / name / "front.json").read_text())
    assert front["counts"]["complete"] == int(kept[1]) >= 1
    assert (shell.out / name / "report.html").stat().st_size > 1_000_000


LOST = """
import os, signal, sys, time, weakref
from kdsearch import __main__ as door
signal.signal(signal.SIGINT, signal.default_int_handler)
class Thing: pass
def stopped(_=None):
    os.kill(os.getpid(), signal.%s)
    time.sleep(0.1)
    print("went on")
class Dying:
    __del__ = stopped
def in_a_callback():
    thing = Thing()
    kept = weakref.ref(thing, stopped)
    del thing
def in_a_destructor():
    Dying()
def in_an_import():
    try:
        stopped()
    except BaseException:  # as an extension does while it is imported
        try:
            raise ImportError("initialization failed") from None
        except ImportError:
            pass
def twice():
    in_a_callback()
    in_an_import()
def run(_):
    %s()
    time.sleep(20)
    print("lost")
door._run = run
try:
    door.main([])
except KeyboardInterrupt:
    print("interrupted")
"""
PLACES = ["in_a_callback", "in_a_destructor", "in_an_import", "twice"]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("place", PLACES)
def test_an_interrupt_is_not_lost_where_exceptions_are_discarded(name: str, place: str) -> None:
    line = [sys.executable, "-c", LOST % (name, place)]
    found = subprocess.run(line, capture_output=True, text=True, check=True, timeout=300)
    assert found.stdout == "interrupted\n"
    assert found.stderr == ""


CONVERTED = """
import os, signal, sys
from kdsearch import __main__ as door
from kdsearch import cli
signal.signal(signal.SIGINT, signal.default_int_handler)
def app(*_, **__):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt as error:
        raise ImportError("initialization failed") from error
cli.app = app
door.main([])
"""


def test_an_interrupt_that_an_import_made_another_error_of_is_an_interrupt() -> None:
    line = [sys.executable, "-c", CONVERTED]
    found = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)
    assert (found.returncode, found.stdout) == (130, "")
    assert found.stderr == "kdsearch: interrupted; run the same command to resume\n"


HUNG_UP = """
import fcntl, termios, time
from kdsearch import __main__ as door
from kdsearch import cli
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
def app(*_, **__):
    print("ready", flush=True)
    time.sleep(60)
cli.app = app
door.main([])
"""


def test_a_terminal_that_hangs_up_gets_no_message_and_the_exit_code_is_130() -> None:
    mine, theirs = pty.openpty()
    line = [sys.executable, "-c", HUNG_UP]
    with subprocess.Popen(
        line, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)
        assert os.read(mine, 5) == b"ready"
        os.close(mine)  # its session gets SIGHUP, and writing is an OSError
        assert process.wait(timeout=300) == 130


ERROR_FIRST = """
import errno, os, signal, threading
from kdsearch import __main__ as door
from kdsearch import cli
def app(*_, **__):
    threading.Timer(0.001, os.kill, (os.getpid(), signal.SIGHUP)).start()
    raise OSError(errno.EIO, "no terminal")
cli.app = app
door.main([])
"""


def test_the_error_of_a_terminal_may_come_before_its_signal() -> None:
    line = [sys.executable, "-c", ERROR_FIRST]
    found = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)
    assert found.returncode == 130
    assert found.stderr == "kdsearch: interrupted; run the same command to resume\n"


def _session(leader: int) -> list[int]:
    """Return the processes of a session: its fourth field, after a name in brackets, tells."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_no_worker_outlives_its_driver_and_the_study_resumes(
    shell: Shell, stop: signal.Signals
) -> None:
    """Ctrl-C reaches the whole group, as from a terminal; kill -9 the driver alone."""
    name = f"workers-{stop.name}"
    # Without first looks: the resumed study would train the better of its trials for longer.
    options = ("--name", name, "--trials", "400", "--stopping", "off")
    line = run_line(shell.out, shell.folder, *options, space=SLOW)
    with start([*line, "--workers", "2"], start_new_session=True) as driver:
        _wait_for(driver, "1 of 400, trial")
        assert len(_session(driver.pid)) >= 3
        requested = time.perf_counter()
        if stop is signal.SIGINT:
            os.killpg(driver.pid, stop)
        else:
            driver.send_signal(stop)
        while _session(driver.pid):
            assert time.perf_counter() - requested < 30
            time.sleep(0.05)
        _, message = driver.communicate(timeout=300)
    if stop is signal.SIGKILL:
        assert message == ""
    else:
        assert driver.returncode == 130
        assert message.startswith("kdsearch: interrupted; ")
        assert message.count("\n") == 1
    before = ended_trials(shell.out / name)
    assert shell.run("--name", name, "--trials", str(len(before) + 1), space=SLOW).code == 0
    after = ended_trials(shell.out / name)
    assert (after[: len(before)], len(after)) == (before, len(before) + 1)


def test_interrupted_teacher_has_its_message(shell: Shell) -> None:
    line = run_line(shell.out, shell.folder, "--name", "early", "--teacher-epochs", "1000")
    with start(line) as driver:
        _wait_for(driver, "Results go to")
        driver.send_signal(signal.SIGINT)
        _, message = driver.communicate(timeout=300)
    assert driver.returncode == 130
    assert message == "kdsearch: interrupted; run the same command to resume\n"
    assert not (shell.out / "early").exists()


def test_killed_study_finds_what_an_uninterrupted_one_finds(shell: Shell) -> None:
    two = ("--trials", "2", "--budget-mflops", "1")
    whole = shell.run("--name", "uninterrupted", *two, space=SLOW)
    assert whole.code == 0, whole
    line = run_line(shell.out, shell.folder, "--name", "killed", *two, space=SLOW)
    with start(line) as driver:
        _wait_for_trial(shell.out / "killed")
        time.sleep(0.5)  # into a trial
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait(timeout=300)
    assert driver.returncode == -signal.SIGKILL
    before = ended_trials(shell.out / "killed")
    resumed = shell.type("run", "--name", "killed", "--out", str(shell.out))
    assert resumed.code == 0, resumed
    after = ended_trials(shell.out / "killed")
    assert after[: len(before)] == before
    assert after == ended_trials(shell.out / "uninterrupted")
    assert len(after) == 2


def test_dashboard_serves_this_machine_only(shell: Shell) -> None:
    with opened(shell.out / "board") as study:
        reported = run_to(study, 8)
    assert {"complete", "rejected"} <= {record.state for record in reported}
    port = "18089"
    with start(["dashboard", "board", "--out", str(shell.out), "--port", port]) as server:
        try:
            listing = json.loads(_get(f"http://127.0.0.1:{port}/api/studies"))["study_summaries"]
            shown = json.loads(
                _get(f"http://127.0.0.1:{port}/api/studies/{listing[0]['study_id']}")
            )["trials"]
            with pytest.raises(ConnectionRefusedError):  # another address of this machine
                socket.create_connection(("127.0.0.2", int(port)), timeout=5)
            second = shell.type("dashboard", "board", "--out", str(shell.out), "--port", port)
            assert second.code == 2
            assert second.stdout == ""  # no address where nothing listens
            assert "Listening" not in second.stderr
            assert "Address already in use; give another --port" in second.stderr
        finally:
            server.send_signal(signal.SIGINT)
            server.communicate(timeout=300)
    assert server.returncode == 0
    for record, trial in zip(reported, shown, strict=True):
        is_feasible = all(violation <= 0 for violation in trial["constraints"])
        assert is_feasible is (record.state == "complete")


def _get(url: str) -> bytes:
    for _ in range(3000):
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bytes(answer.read())
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{url} does not answer")
