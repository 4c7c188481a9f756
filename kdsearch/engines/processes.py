"""Worker processes: one trial each at a time, on one CPU thread by default.

Two trainings of one thread finish sooner than one after the other with two threads. A worker is a
process of its own, started afresh (torch's threads do not survive a fork), that lays out the same
bench from the request: images and teacher's outputs are mapped from the cache. Candidates and
outcomes cross the pipe, and at each rung whether to go on. A worker that dies, or is killed since
its trial took too long, fails that trial alone, and the next one starts another; all of them end
with the driver, however that ends.
"""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TypeAlias

import torch

from kdsearch.errors import KDSearchError, StudyError
from kdsearch.spec import Candidate
from kdsearch.study.config import StudyConfig
from kdsearch.study.early_stopping import OnRung, Rung
from kdsearch.study.study import TrialOutcome
from kdsearch.training.trainer import Epoch, OnEpoch
from kdsearch.trials.context import lay_out, load_data
from kdsearch.trials.trial import TrialContext, run_trial

_READY = "ready"
# What a worker tells: that it is ready, each epoch and how many there will be, a rung, at which it
# waits for the answer, and how the trial ended. It also sends what it logs, and what the study
# cannot survive.
_Told: TypeAlias = str | tuple[Epoch, int] | Rung | TrialOutcome
_Sent: TypeAlias = _Told | logging.LogRecord | KDSearchError
_Pipe: TypeAlias = "Connection[_Sent, tuple[Candidate, Path] | str | None]"


class Worker:
    """A process that runs trials as `run_trial` does. It starts with the first one.

    out: the results folder, whose cache holds the images and the teacher. unfinished: where
    trainings are kept until they end. threads: of the CPU. timeout: the seconds that a trial may
    take, whatever it is at, waiting for its turn included; starting the process is not counted.
    """

    def __init__(
        self,
        config: StudyConfig,
        *,
        out: Path,
        device: torch.device,
        unfinished: Path | None = None,
        threads: int = 1,
        timeout: float | None = None,
    ) -> None:
        self._given = config, out, device, unfinished, threads
        self._timeout = math.inf if timeout is None else timeout
        self._until = math.inf
        self._process: SpawnProcess | None = None

    def run_trial(
        self,
        candidate: Candidate,
        directory: Path,
        *,
        on_epoch: OnEpoch | None = None,
        on_rung: OnRung | None = None,
    ) -> TrialOutcome:
        """Run one trial; a worker that dies makes of it a failed one that says how.

        Raises KDSearchError for what the study as a whole cannot survive, such as a worker that
        cannot be started.
        """
        if self._process is None or not self._process.is_alive():
            self._start()
        started = time.perf_counter()
        self._until = started + self._timeout
        try:
            self._pipe.send((candidate, directory))
            return self._outcome(on_epoch, on_rung)
        except TimeoutError:
            self.stop()
            reason = f"no end after {self._timeout:g} s (--trial-timeout)"
        except (EOFError, ConnectionError):
            reason = f"its worker process {self._end()}"
        return TrialOutcome(state="failed", reason=reason, seconds=time.perf_counter() - started)

    def stop(self) -> None:
        """End the process at once, and the trial that it is at."""
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def _start(self) -> None:
        """Start the process and wait until it has its bench."""
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        process = spawn.Process(target=_work, args=(theirs, *self._given), daemon=True)
        with _deaf_to_ctrl_c():
            process.start()
        theirs.close()
        self._process = process
        self._until = math.inf
        try:
            ready = self._told()
        except (EOFError, ConnectionError):
            raise StudyError(f"a worker process {self._end()} before its first trial") from None
        assert ready == _READY

    def _outcome(self, on_epoch: OnEpoch | None, on_rung: OnRung | None) -> TrialOutcome:
        while not isinstance(told := self._told(), TrialOutcome):
            if isinstance(told, Rung):
                self._pipe.send(None if on_rung is None else on_rung(told))
                continue
            assert isinstance(told, tuple)
            if on_epoch is not None:
                on_epoch(*told)
        return told

    def _told(self) -> _Told:
        """Return what the worker says next, after logging what it logged.

        Raises TimeoutError where it says nothing in time.
        """
        while isinstance(told := self._received(), logging.LogRecord):
            logging.getLogger(told.name).handle(told)
        if isinstance(told, KDSearchError):
            raise told
        said: _Told = told
        return said

    def _received(self) -> _Sent:
        left = None if self._until == math.inf else max(0.0, self._until - time.perf_counter())
        if not self._pipe.poll(left):
            raise TimeoutError
        received: _Sent = self._pipe.recv()
        return received

    def _end(self) -> str:
        """Say how the process ended."""
        assert self._process is not None
        self._process.join()
        code = self._process.exitcode or 0
        if code >= 0:
            return f"ended with status {code}"
        told = f"was killed by {signal.Signals(-code).name}"
        return f"{told}; was memory short?" if -code == signal.SIGKILL else told


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Start processes that Ctrl-C does not reach, which a terminal sends to the whole group.

    They inherit which signals are blocked. multiprocessing's tracker, which the first of them
    starts, would unblock it.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def open_workers(
    count: int,
    config: StudyConfig,
    *,
    out: Path,
    device: torch.device,
    unfinished: Path | None = None,
    threads: int = 1,
    timeout: float | None = None,
) -> Iterator[list[Worker]]:
    """Give that many workers, and stop them in the end."""
    one = partial(
        Worker,
        config,
        out=out,
        device=device,
        unfinished=unfinished,
        threads=threads,
        timeout=timeout,
    )
    workers = [one() for _ in range(count)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.stop()


def _work(
    pipe: _Pipe,
    config: StudyConfig,
    out: Path,
    device: torch.device,
    unfinished: Path | None,
    threads: int,
) -> None:
    """Be a worker: run what comes through the pipe until it is closed."""
    threading.Thread(target=_end_with_driver, daemon=True).start()
    torch.set_num_threads(threads)
    logger = logging.getLogger("kdsearch")
    logger.setLevel(logging.INFO)
    logger.addHandler(_ToDriver(pipe))
    with suppress(EOFError, ConnectionError):  # the driver is gone
        try:
            _serve(pipe, replace(bench_of(config, out, device), unfinished=unfinished))
        except KDSearchError as error:
            pipe.send(error)


def _serve(pipe: _Pipe, context: TrialContext) -> None:
    def on_rung(rung: Rung) -> str | None:
        pipe.send(rung)
        answer = pipe.recv()
        assert not isinstance(answer, tuple)
        return answer

    pipe.send(_READY)
    while True:
        given = pipe.recv()
        assert isinstance(given, tuple)
        told = partial(run_trial, on_epoch=lambda *epoch: pipe.send(epoch), on_rung=on_rung)
        pipe.send(told(given[0], context, given[1]))


class _ToDriver(logging.Handler):
    """Sends what is logged, as text with its traceback: the driver alone writes the log."""

    def __init__(self, pipe: _Pipe) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        self._pipe.send(
            logging.LogRecord(
                record.name, record.levelno, record.pathname, record.lineno, text, None, None
            )
        )


def bench_of(config: StudyConfig, out: Path, device: torch.device) -> TrialContext:
    """Lay out the bench of a study that has begun. Raises StudyError where its images changed."""
    data, found = load_data(config, out)
    if found != config:
        raise StudyError(f"{config.data} has changed since the study began")
    return lay_out(config, data, out=out, device=device)


def _end_with_driver() -> None:
    """Leave, whatever the trial is at, as soon as the driver is gone."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)
