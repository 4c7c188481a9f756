"""A training that was interrupted goes on as if it had not been, bit for bit."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_data import CPU, distiller_for, tiny_model, toy_data
from toy_trial import assert_same_training

from kdsearch.data.feed import Feed
from kdsearch.errors import StudyError
from kdsearch.models.model import Model
from kdsearch.spec import DistillSpec, TrainSpec
from kdsearch.training.checkpoint import Checkpoint
from kdsearch.training.step import Session
from kdsearch.training.teacher_cache import TeacherOutputs
from kdsearch.training.trainer import Epoch, train

DATA = toy_data()
SPEC = TrainSpec(epochs=5, batch_size=16, lr=0.02, ema=0.9)


@pytest.fixture(autouse=True)
def _every_epoch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not {"short", "stages"} & set(request.node.name.split("_")):
        monkeypatch.setattr(Checkpoint, "every_seconds", 0.0)


class StoppedError(Exception):
    """The power is gone."""


def trained(
    distill: DistillSpec,
    spec: TrainSpec,
    checkpoint: Checkpoint | None = None,
    *,
    stop_after: int | None = None,
    pause_at: int | None = None,
    width: int = 8,
) -> tuple[list[Epoch], Model]:
    """Train from the same start; stop after `stop_after` epochs."""
    model, teacher = tiny_model(width=width), tiny_model(1).freeze()
    torch.manual_seed(5)
    distiller = distiller_for(distill, model, teacher)
    outputs = TeacherOutputs(teacher, Feed(DATA.train, CPU), view_seed=7)
    session = Session(data=DATA, spec=spec, seed=0, view_seed=7, device=CPU, teachers=(outputs,))

    def on_epoch(epoch: Epoch, _: int) -> None:
        if epoch.number == stop_after:
            raise StoppedError

    torch.manual_seed(6)
    epochs = train(
        model, distiller, session, on_epoch=on_epoch, checkpoint=checkpoint, pause_at=pause_at
    )
    return epochs, model


@pytest.mark.parametrize(
    ("distill", "recipe"),
    [
        (DistillSpec(method="none"), {}),
        (DistillSpec(method="kd"), {"optimizer": "adamw", "mix": "mixup"}),
        (DistillSpec(method="mgd"), {"optimizer": "muon", "policy": "trivial"}),
        (DistillSpec(method="crd"), {"accumulate": 2, "clip": 1.0}),
        (DistillSpec(method="fitnet", balance="gradnorm"), {"views": 2}),
        (DistillSpec(method="at", balance="uncertainty", mapping="all"), {}),
        (DistillSpec(method="kd+fitnet", order="progressive"), {"precision": "bf16"}),
    ],
    ids=str,
)
def test_a_resumed_training_equals_one_that_was_never_interrupted(
    distill: DistillSpec, recipe: dict[str, object], tmp_path: Path
) -> None:
    spec = replace(SPEC, **recipe)
    file = tmp_path / "unfinished" / "it.pt"
    for stop_after in (2, 4):
        with pytest.raises(StoppedError):
            trained(distill, spec, Checkpoint(file, "it"), stop_after=stop_after)
    resumed = trained(distill, spec, Checkpoint(file, "it"))
    assert_same_training(resumed, trained(distill, spec))
    assert not file.exists()


def test_a_training_in_stages_equals_one_in_a_piece(tmp_path: Path) -> None:
    """It keeps its checkpoint at each pause, however short the time, and none at its end."""
    file = tmp_path / "unfinished" / "it.pt"
    whole = trained(DistillSpec(method="crd"), SPEC)
    for pause_at in (1, 3, 3, 5):
        epochs, model = trained(
            DistillSpec(method="crd"), SPEC, Checkpoint(file, "it"), pause_at=pause_at
        )
        assert [epoch.val for epoch in epochs] == [epoch.val for epoch in whole[0][:pause_at]]
        assert file.exists() == (pause_at < SPEC.epochs)
    assert_same_training((epochs, model), whole)


def test_what_was_trained_is_not_trained_again(tmp_path: Path) -> None:
    file = tmp_path / "it.pt"
    with pytest.raises(StoppedError):
        trained(DistillSpec(), SPEC, Checkpoint(file, "it"), stop_after=4)
    content = file.read_bytes().partition(b"\n")[2]
    kept = torch.load(io.BytesIO(content), weights_only=True)["epochs"]
    assert [epoch["number"] for epoch in kept] == [
        1,
        2,
        3,
    ]  # the fourth is not stored
    epochs, _ = trained(DistillSpec(), SPEC, Checkpoint(file, "it"))
    assert [epoch.seconds for epoch in epochs[:3]] == [epoch["seconds"] for epoch in kept]


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_a_network_that_has_changed_since_starts_anew(optimizer: str, tmp_path: Path) -> None:
    file, spec = tmp_path / "it.pt", replace(SPEC, optimizer=optimizer)
    with pytest.raises(StoppedError):
        trained(DistillSpec(), spec, Checkpoint(file, "it"), stop_after=3)
    again = trained(DistillSpec(), spec, Checkpoint(file, "it"), width=12)
    assert_same_training(again, trained(DistillSpec(), spec, width=12))


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "text"])
def test_a_file_that_is_damaged_or_of_another_training_is_not_used(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "it.pt"
    with pytest.raises(StoppedError):
        trained(DistillSpec(), SPEC, Checkpoint(file, "it"), stop_after=3)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-200])
    elif damage == "flipped":
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 64
        file.write_bytes(content)
    elif damage == "text":
        file.write_text("no checkpoint")
    again = trained(DistillSpec(), SPEC, Checkpoint(file, "other" if damage == "other" else "it"))
    assert_same_training(again, trained(DistillSpec(), SPEC))
    assert "it.pt is not used" in caplog.text


def test_short_trainings_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        trained(DistillSpec(), SPEC, Checkpoint(tmp_path / "it.pt", "it"), stop_after=4)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_raises_study_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    checkpoint = Checkpoint(tmp_path / "file" / "it.pt", "it")
    with pytest.raises(StudyError, match="cannot write"):
        trained(DistillSpec(), SPEC, checkpoint)
