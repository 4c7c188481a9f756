"""A disk that is full stops the study with a message; with room again it goes on, nothing lost.

The disk is a real one, of a megabyte or two in memory.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from table_study import look_up, opened, run_search, run_to
from torch import nn
from toy_data import CPU, distiller_for, tiny_model, toy_data
from toy_trial import PLAIN, context

from kdsearch.data.feed import Feed
from kdsearch.errors import StudyError
from kdsearch.models.weights import save_weights
from kdsearch.report.artifacts import write_derived
from kdsearch.spec import DistillSpec, TrainSpec
from kdsearch.study.open import load_study
from kdsearch.study.study import OpenStudy
from kdsearch.training.checkpoint import Checkpoint
from kdsearch.training.step import Session
from kdsearch.training.teacher_cache import TeacherOutputs
from kdsearch.training.trainer import train
from kdsearch.trials.trial import run_trial

N = 14  # as in test_study: the sampler leaves its random start at ten


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a file system of 2 MB."""
    path = tmp_path_factory.mktemp("disk")
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


class Filler:
    """Takes all that is left of a disk, or gives it back."""

    def __init__(self, disk: Path) -> None:
        self._file = disk / "filler"

    def fill(self, leave: int = 0) -> None:
        self.free()
        found = os.statvfs(self._file.parent)
        size = found.f_bavail * found.f_frsize - leave
        self._file.write_bytes(bytes(max(0, size)))

    def free(self) -> None:
        self._file.unlink(missing_ok=True)


@pytest.fixture
def filler(disk: Path) -> Iterator[Filler]:
    filler = Filler(disk)
    yield filler
    filler.free()


@pytest.mark.parametrize("leave", [0, 20_000])
def test_a_study_whose_store_cannot_grow_stops_and_resumes(
    leave: int, disk: Path, filler: Filler, fast_path: Path
) -> None:
    with opened(fast_path / f"whole-{leave}") as study:
        whole = run_to(study, N)
    path = disk / f"table-{leave}"
    with pytest.raises(StudyError, match=r"cannot write .*study\.db: .+full.+resumes"):
        stop_full(path, filler, leave)
    filler.free()
    with opened(path) as study:
        kept = [record for record in study.records() if record.state != "interrupted"]
        assert len(kept) >= 3
        again = [record for record in run_to(study, N) if record.state != "interrupted"]
    assert [replace(r, number=0) for r in again] == [replace(r, number=0) for r in whole]
    assert again[: len(kept)] == kept
    for file in path.iterdir():
        file.unlink()


def stop_full(path: Path, filler: Filler, leave: int) -> None:
    with opened(path) as study:
        run_to(study, 3)
        filler.fill(leave)
        run_search(study, [look_up], n_trials=N)


def test_a_study_that_cannot_be_begun_leaves_nothing_half_written(
    disk: Path, filler: Filler
) -> None:
    path = disk / "begun"
    path.mkdir()
    (path / ".lock").touch()
    filler.fill()
    with (
        pytest.raises(
            StudyError, match=r"cannot (open|write) .*(study\.(db|yaml)|begun: No space)"
        ),
        opened(path),
    ):
        pass
    assert [file.name for file in path.iterdir()] == [".lock"]
    filler.fill(8192)  # enough for the request, not for the store
    with pytest.raises(StudyError, match=r"cannot (open|write) .*study\.db"), opened(path):
        pass
    filler.free()
    with opened(path) as study:
        assert len(run_to(study, 2)) == 2


def test_a_report_that_cannot_be_written_leaves_the_old_one(disk: Path, filler: Filler) -> None:
    path = disk / "reported"
    with opened(path) as study:
        run_to(study, 3)
        study.update_facts(
            teacher={
                "name": "t",
                "val": 0.9,
                "test": 0.9,
                "flops": 1,
                "params": 1,
                "latency_ms": 1.0,
            }
        )
        filler.fill()
        with pytest.raises(StudyError, match=r"cannot write .*front\.json: No space left"):
            write_derived(study)
    filler.free()
    assert isinstance(load_study(path), OpenStudy)
    filler.fill(100_000)  # enough for front.json and trials.csv, not for plotly
    with pytest.raises(StudyError, match=r"cannot write .*report\.html: No space left"):
        write_derived(load_study(path))
    assert not [file.name for file in path.iterdir() if file.name.startswith(".r")]


def test_weights_that_cannot_be_written_leave_the_old_ones(disk: Path, filler: Filler) -> None:
    path = disk / "weights" / "student.safetensors"
    save_weights(nn.Linear(10, 10), path)
    before = path.read_bytes()
    filler.fill(1000)
    with pytest.raises(StudyError, match=r"cannot write .*student\.safetensors: .*No space left"):
        save_weights(nn.Linear(100, 100), path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(
    disk: Path, filler: Filler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "every_seconds", 0.0)
    data, path = toy_data(), disk / "unfinished" / "it.pt"
    kept: list[bytes] = []

    def on_epoch(epoch: object, _: int) -> None:
        if path.exists():
            kept.append(path.read_bytes())
            filler.fill()

    model, teacher = tiny_model(), tiny_model(1).freeze()
    torch.manual_seed(5)
    distiller = distiller_for(DistillSpec(), model, teacher)
    outputs = TeacherOutputs(teacher, Feed(data.train, CPU), view_seed=7)
    spec = TrainSpec(epochs=5, batch_size=16, lr=0.02)
    session = Session(data=data, spec=spec, seed=0, view_seed=7, device=CPU, teachers=(outputs,))
    with pytest.raises(StudyError, match=r"cannot write .*it\.pt: No space left on device"):
        train(model, distiller, session, on_epoch=on_epoch, checkpoint=Checkpoint(path, "it"))
    assert [path.read_bytes()] == kept
    assert [file.name for file in path.parent.iterdir()] == ["it.pt"]


def test_a_trial_whose_measurement_cannot_be_kept_is_no_failed_trial(
    disk: Path, filler: Filler
) -> None:
    laid = context(disk / "measured")
    filler.fill()
    with pytest.raises(StudyError, match=r"cannot write .+: No space left on device"):
        run_trial(PLAIN, laid, disk / "measured" / "0")
