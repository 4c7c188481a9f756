"""Training steps overlap, a measurement runs alone, and a dead process holds no lock."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Barrier, Event, Thread
from types import SimpleNamespace

import pytest
import torch
from toy_trial import DATA, PLAIN, context

from kdsearch.deploy.device_lock import DeviceLock, _physical
from kdsearch.deploy.latency import Latency
from kdsearch.deploy.pricing import build_student, price
from kdsearch.errors import StudyError
from kdsearch.spec import Budget
from kdsearch.trials.trial import run_trial

TIMEOUT = 20.0


@contextmanager
def threads(*runs: Callable[[], None]) -> Iterator[None]:
    """Run callables in threads during the block; each must end without an error."""
    errors: list[BaseException] = []

    def caught(run: Callable[[], None]) -> None:
        try:
            run()
        except BaseException as error:
            errors.append(error)

    started = [Thread(target=caught, args=(run,), daemon=True) for run in runs]
    for thread in started:
        thread.start()
    yield
    for thread in started:
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    assert errors == []


def test_two_trainings_step_at_the_same_time(tmp_path: Path) -> None:
    both = Barrier(2)

    def train() -> None:
        with DeviceLock(folder=tmp_path).shared() as step, step:
            both.wait(TIMEOUT)

    with threads(train, train):
        pass


def test_a_measurement_overlaps_nothing(tmp_path: Path) -> None:
    inside: list[str] = []
    overlaps: list[list[str]] = []

    def train() -> None:
        with DeviceLock(folder=tmp_path).shared() as step:
            for _ in range(100):
                with step:
                    inside.append("step")
                    time.sleep(0.001)
                    inside.remove("step")

    def measure() -> None:
        for _ in range(10):
            with DeviceLock(folder=tmp_path).exclusive():
                inside.append("measurement")
                time.sleep(0.003)
                overlaps.append(list(inside))
                inside.remove("measurement")

    with threads(train, train, measure, measure):
        pass
    assert overlaps == 20 * [["measurement"]]


def test_a_measurement_comes_between_steps_that_overlap_without_end(tmp_path: Path) -> None:
    """Two trainings, of which one is always in a step: a plain lock would wait for ever."""
    done = Event()

    def train(start: float) -> None:
        time.sleep(start)
        with DeviceLock(folder=tmp_path).shared() as step:
            while not done.is_set():
                with step:
                    time.sleep(0.05)

    with threads(lambda: train(0.0), lambda: train(0.025)):
        try:
            time.sleep(0.2)
            started = time.perf_counter()
            with DeviceLock(folder=tmp_path).exclusive():
                waited = time.perf_counter() - started
        finally:
            done.set()
    assert waited < 1


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda number: SimpleNamespace(uuid=f"GPU-{number}")
    )
    yield
    _physical.cache_clear()


@pytest.mark.usefixtures("two_gpus")
def test_each_device_has_a_lock_of_its_own(tmp_path: Path) -> None:
    with ExitStack() as stack:
        for device in ("cpu", "cuda:0", "cuda:1"):
            stack.enter_context(DeviceLock(device, folder=tmp_path).exclusive())


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_has_the_same_lock_under_each_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for two actors of Ray, each of which sees its own GPU as `cuda:0`."""
    for number in (0, 1):
        monkeypatch.setattr(
            torch.cuda, "get_device_properties", lambda _, n=number: SimpleNamespace(uuid=n)
        )
        _physical.cache_clear()
        with DeviceLock("cuda:0", folder=tmp_path).exclusive():
            pass
    assert {path.name for path in tmp_path.glob("*-gate")} == {"cuda-0-gate", "cuda-1-gate"}


def test_locks_lie_in_a_folder_of_this_user_that_nobody_else_may_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with DeviceLock().exclusive():
        (folder,) = tmp_path.iterdir()
    assert folder.name == f"kdsearch-{os.getuid()}"
    assert folder.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(folder)
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StudyError, match="belongs to another user"), DeviceLock().exclusive():
        pass


HOLD = """
import sys, time
from pathlib import Path
from kdsearch.deploy.device_lock import DeviceLock
lock = DeviceLock(folder=Path(sys.argv[1]))
with lock.shared() as step, step if sys.argv[2] == "training" else lock.exclusive():
    print("holds", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["training", "measuring"])
def test_a_killed_holder_releases_its_lock(tmp_path: Path, how: str) -> None:
    line = [sys.executable, "-c", HOLD, str(tmp_path), how]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "holds\n"
        had_it = Event()

        def measure() -> None:
            with DeviceLock(folder=tmp_path).exclusive():
                had_it.set()

        with threads(measure):
            assert not had_it.wait(0.2)
            holder.kill()
            assert had_it.wait(TIMEOUT)


def test_an_error_in_a_step_releases_the_lock(tmp_path: Path) -> None:
    with DeviceLock(folder=tmp_path).shared() as step:
        with pytest.raises(ZeroDivisionError), step:
            raise ZeroDivisionError
        with DeviceLock(folder=tmp_path).exclusive():
            pass


def test_a_student_is_not_measured_during_anothers_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, measured, hold = context(tmp_path), Event(), ExitStack()

    def measure(*_: object, **__: object) -> Latency:
        measured.set()
        return Latency(ms=1.0, low_ms=0.9, high_ms=1.1, spread_ms=0.1, contention=1.0)

    monkeypatch.setattr("kdsearch.deploy.latency.measure_rounds", measure)
    hold.enter_context(hold.enter_context(DeviceLock().shared()))
    with threads(
        lambda: price(
            build_student(PLAIN.student, DATA),
            budget=Budget(latency_ms=10),
            latencies=shared.latencies,
        )
    ):
        assert not measured.wait(1)
        hold.close()
        assert measured.wait(TIMEOUT)


def test_a_trial_makes_no_epoch_during_anothers_measurement(tmp_path: Path) -> None:
    shared, trained, hold = context(tmp_path), Event(), ExitStack()
    price(build_student(PLAIN.student, DATA), budget=shared.budget, latencies=shared.latencies)
    hold.enter_context(DeviceLock().exclusive())

    def run() -> None:
        run_trial(PLAIN, shared, tmp_path / "0", on_epoch=lambda *_: trained.set())

    with threads(run):
        assert not trained.wait(1)
        hold.close()
        assert trained.wait(TIMEOUT)
