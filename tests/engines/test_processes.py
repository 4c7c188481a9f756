"""A worker runs a trial as this process would; one that dies fails its trial alone."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from toy_data import CPU

from kdsearch.engines.processes import Worker
from kdsearch.errors import StudyError
from kdsearch.spec import Candidate, DistillSpec, StudentSpec, TrainSpec
from kdsearch.study.config import StudyConfig, config_of
from kdsearch.study.early_stopping import Rung
from kdsearch.training.trainer import Epoch
from kdsearch.trials.context import lay_out, load_data
from kdsearch.trials.trial import WEIGHTS, run_trial

SMALL = StudentSpec(family="resnet", resolution=8, knobs={"width": 0.25, "depth": 3})
PLAIN = Candidate(
    student=SMALL,
    distill=DistillSpec(method="kd"),
    train=TrainSpec(epochs=2, batch_size=64, lr=0.1),
)
BROKEN = """
import os, signal
from kdsearch.models.students.resnet import ResNet

class Dies(ResNet):
    def __init__(self, **given):
        os.kill(os.getpid(), signal.SIGKILL)

class Hangs(ResNet):
    def __init__(self, **given):
        signal.pause()

class Fails(ResNet):
    def __init__(self, **given):
        raise ZeroDivisionError("on purpose")
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyConfig, Path]:
    """Return a request whose teacher is in the cache of the results folder beside it."""
    out = tmp_path_factory.mktemp("results")
    data, config = load_data(config_of({"teacher_epochs": 1}), out)
    lay_out(config, data, out=out, device=CPU)
    return config, out


@pytest.fixture(scope="module")
def worker(given: tuple[StudyConfig, Path]) -> Iterator[Worker]:
    config, out = given
    with Worker(config, out=out, device=CPU) as one:
        yield one


def broken(folder: Path, name: str) -> Candidate:
    """Return a candidate whose student is a class of a user's file."""
    (folder / "broken.py").write_text(BROKEN, encoding="utf-8")
    family = f"{folder / 'broken.py'}:{name}"
    return replace(PLAIN, student=replace(SMALL, family=family, knobs={}))


@pytest.mark.usefixtures("no_seed_offset")
def test_a_trial_in_a_worker_has_the_bits_of_one_here(
    worker: Worker, given: tuple[StudyConfig, Path], tmp_path: Path
) -> None:
    config, out = given
    shown: list[tuple[Epoch, int]] = []
    there = worker.run_trial(PLAIN, tmp_path / "there", on_epoch=lambda *e: shown.append(e))
    data, _ = load_data(config, out)
    here = run_trial(PLAIN, lay_out(config, data, out=out, device=CPU), tmp_path / "here")
    assert there.state == "complete"
    assert replace(there, seconds=0, teacher_seconds=0) == replace(
        here, seconds=0, teacher_seconds=0
    )
    assert [(epoch.number, epoch.val, epochs) for epoch, epochs in shown] == [
        (number, val, 2) for number, val in enumerate(here.curve, start=1)
    ]
    files = [tmp_path / where / WEIGHTS for where in ("there", "here")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_driver_stops_a_trial_in_a_worker_which_then_runs_the_next(
    worker: Worker, tmp_path: Path
) -> None:
    requested: list[Rung] = []

    def on_rung(rung: Rung) -> str | None:
        requested.append(rung)
        return "hopeless" if len(rung.curve) == 2 else None

    longer = replace(PLAIN, train=replace(PLAIN.train, epochs=4))
    outcome = worker.run_trial(longer, tmp_path / "0", on_rung=on_rung)
    assert (outcome.state, outcome.reason) == ("pruned", "hopeless")
    assert [(rung.curve, rung.epochs, rung.cost) for rung in requested] == [
        (outcome.curve[:n], 4, outcome.cost) for n in (1, 2)
    ]
    assert worker.run_trial(longer, tmp_path / "1").state == "complete"


def test_a_worker_that_is_killed_fails_its_trial_alone(worker: Worker, tmp_path: Path) -> None:
    outcome = worker.run_trial(broken(tmp_path, "Dies"), tmp_path / "0")
    assert outcome.state == "failed"
    assert outcome.reason == "its worker process was killed by SIGKILL; was memory short?"
    assert worker.run_trial(PLAIN, tmp_path / "1").state == "complete"


def test_a_trial_that_hangs_fails_alone(given: tuple[StudyConfig, Path], tmp_path: Path) -> None:
    config, out = given
    with Worker(config, out=out, device=CPU, timeout=1.5, threads=2) as one:
        outcome = one.run_trial(broken(tmp_path, "Hangs"), tmp_path / "0")
        assert (outcome.state, outcome.reason) == ("failed", "no end after 1.5 s (--trial-timeout)")
        assert 1.5 <= outcome.seconds < 60
        hung = one._process
        one._timeout = 60.0  # starting anew does not count, but this machine may be slow
        assert one.run_trial(PLAIN, tmp_path / "1").state == "complete"
        assert hung is not None
        assert hung.exitcode == -signal.SIGKILL


def test_what_a_worker_logs_is_logged_here(
    worker: Worker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "kdsearch"):
        outcome = worker.run_trial(broken(tmp_path, "Fails"), tmp_path / "0")
    assert outcome.state == "failed"
    assert outcome.reason.startswith("ZeroDivisionError: on purpose (")
    assert outcome.reason.endswith("broken.py, line 15)")
    (record,) = caplog.records
    assert record.name == "kdsearch.trials.trial"
    assert "Traceback" in record.message


def test_a_study_that_cannot_write_ends_with_its_own_error(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StudyError, match="cannot write"):
        worker.run_trial(PLAIN, tmp_path / "file" / "0")


def test_a_worker_refuses_images_that_have_changed(given: tuple[StudyConfig, Path]) -> None:
    config, out = given
    changed = replace(config, data_key="other")
    with (
        Worker(changed, out=out, device=CPU) as one,
        pytest.raises(StudyError, match="digits has changed since the study began"),
    ):
        one.run_trial(PLAIN, out / "never")
