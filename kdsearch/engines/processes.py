"""Worker processes: one trial each at a time, on one CPU thread by default.

Two trainings with one thread each finish sooner than one after the other with two. A worker is a
spawned process (torch's threads do not survive a fork) that prepares the study's context itself:
it maps images and teacher outputs from the cache. Candidates, epochs, rungs and outcomes cross the
pipe. A worker that dies, or is killed at a timeout, fails its trial alone, and the next trial
starts another. All workers end with the driver.
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
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TypeAlias

import torch

from kdsearch.engines.logs import send_logs, write_log
from kdsearch.errors import KDSearchError, StudyError
from kdsearch.spec import Candidate
from kdsearch.study.config import StudyConfig
from kdsearch.study.early_stopping import OnRung, Rung
from kdsearch.study.trial_notes import TrialOutcome
from kdsearch.training.trainer import Epoch, OnEpoch
from kdsearch.trials.context import lay_out, load_data
from kdsearch.trials.trial import TrialContext, run_trial

_READY = "ready"
# A worker sends _READY, each epoch with the planned epochs, a rung, where it waits for the answer,
# and the outcome; also log records, and an error that ends the study.
_Message: TypeAlias = str | tuple[Epoch, int] | Rung | TrialOutcome
_Sent: TypeAlias = _Message | logging.LogRecord | KDSearchError
_Pipe: TypeAlias = "Connection[_Sent, tuple[Candidate, Path, int | None] | str | None]"


class Worker(AbstractContextManager["Worker"]):
    """A process that runs trials as `run_trial` does, from the first one until its context ends.

    out: the results folder, whose cache holds the images and the teacher. unfinished: the folder of
    trainings that have not ended. threads: of the CPU. timeout: seconds that a trial may take,
    waiting for locks included; the start of the process does not count.
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
        pause_at: int | None = None,
    ) -> TrialOutcome:
        """Run one trial; it fails with the cause of death if the worker dies.

        Raises KDSearchError for an error that ends the study, such as a worker that cannot start.
        """
        if self._process is None or not self._process.is_alive():
            self._start()
        started = time.perf_counter()
        self._until = started + self._timeout
        try:
            self._pipe.send((candidate, directory, pause_at))
            return self._outcome(on_epoch, on_rung)
        except TimeoutError:
            self._stop()
            reason = f"no end after {self._timeout:g} s (--trial-timeout)"
        except (EOFError, ConnectionError):
            reason = f"its worker process {self._end()}"
        return TrialOutcome(state="failed", reason=reason, seconds=time.perf_counter() - started)

    def __exit__(self, *_: object) -> None:
        """End the process at once, and the trial that it is at."""
        self._stop()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def _start(self) -> None:
        """Start the process and wait until its context is ready."""
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        process = spawn.Process(target=_work, args=(theirs, *self._given), daemon=True)
        with _ignore_sigint():
            process.start()
        theirs.close()
        self._process = process
        self._until = math.inf
        try:
            ready = self._message()
        except (EOFError, ConnectionError):
            raise StudyError(f"a worker process {self._end()} before its first trial") from None
        assert ready == _READY

    def _outcome(self, on_epoch: OnEpoch | None, on_rung: OnRung | None) -> TrialOutcome:
        while not isinstance(message := self._message(), TrialOutcome):
            if isinstance(message, Rung):
                self._pipe.send(None if on_rung is None else on_rung(message))
                continue
            assert isinstance(message, tuple)
            if on_epoch is not None:
                on_epoch(*message)
        return message

    def _message(self) -> _Message:
        """Return the next message, and log the log records before it.

        Raises TimeoutError at the timeout, and the error that the worker sent.
        """
        while True:
            left = None if self._until == math.inf else max(0.0, self._until - time.perf_counter())
            if not self._pipe.poll(left):
                raise TimeoutError
            sent: _Sent = self._pipe.recv()
            if isinstance(sent, KDSearchError):
                raise sent
            if not isinstance(sent, logging.LogRecord):
                return sent
            write_log(sent)

    def _end(self) -> str:
        """Return the cause of the process's end."""
        assert self._process is not None
        self._process.join()
        code = self._process.exitcode or 0
        if code >= 0:
            return f"ended with status {code}"
        cause = f"was killed by {signal.Signals(-code).name}"
        return f"{cause}; was memory short?" if -code == signal.SIGKILL else cause


@contextmanager
def _ignore_sigint() -> Iterator[None]:
    """Start processes without SIGINT: a terminal sends Ctrl-C to the whole group.

    They inherit which signals are blocked. multiprocessing's tracker, which the first of them
    starts, would unblock it.
    """
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(
    pipe: _Pipe,
    config: StudyConfig,
    out: Path,
    device: torch.device,
    unfinished: Path | None,
    threads: int,
) -> None:
    """Run the trials that come through the pipe until it is closed."""
    threading.Thread(target=_end_with_driver, daemon=True).start()
    torch.set_num_threads(threads)
    send_logs(pipe.send)
    with suppress(EOFError, ConnectionError):  # the driver is gone
        try:
            _serve(pipe, replace(load_context(config, out, device), unfinished=unfinished))
        except KDSearchError as error:
            pipe.send(error)


def _serve(pipe: _Pipe, context: TrialContext) -> None:
    def on_rung(rung: Rung) -> str | None:
        pipe.send(rung)
        answer = pipe.recv()
        assert not isinstance(answer, tuple)
        return answer

    run = partial(run_trial, on_epoch=lambda *epoch: pipe.send(epoch), on_rung=on_rung)
    pipe.send(_READY)
    while True:
        given = pipe.recv()
        assert isinstance(given, tuple)
        candidate, directory, pause_at = given
        pipe.send(run(candidate, context, directory, pause_at=pause_at))


def load_context(config: StudyConfig, out: Path, device: torch.device) -> TrialContext:
    """Return the context of a study that has begun. Raises StudyError if its images changed."""
    data, found = load_data(config, out)
    if found != config:
        raise StudyError(f"{config.data} has changed since the study began")
    return lay_out(config, data, out=out, device=device)


def _end_with_driver() -> None:
    """Exit as soon as the driver has ended."""
    driver = multiprocessing.parent_process()
    assert driver is not None
    driver.join()
    os._exit(1)
