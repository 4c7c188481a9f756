"""Distillation that ends when the student has reached its teacher: then the labels alone teach."""

from __future__ import annotations

import csv
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import TypeAlias

import pytest
import torch
from torch import Tensor
from toy_data import CPU, distiller_for, tiny_model, toy_data
from toy_trial import PLAIN, assert_same_training, context

from kdsearch.data.base import Augment
from kdsearch.data.feed import Feed
from kdsearch.errors import SpecError
from kdsearch.models.features import Outputs
from kdsearch.models.model import Known, Model
from kdsearch.spec import DistillSpec, TrainSpec
from kdsearch.teachers.evaluation import evaluate_teachers
from kdsearch.training.checkpoint import Checkpoint
from kdsearch.training.distiller.recipe import check
from kdsearch.training.step import Session
from kdsearch.training.teacher_cache import TeacherOutputs
from kdsearch.training.trainer import Epoch, train
from kdsearch.trials.trial import run_trial

DATA = toy_data()
SPEC = TrainSpec(epochs=5, batch_size=16, lr=0.02, ema=0.9)


class Counted:
    """A teacher that counts the views for which it was asked."""

    def __init__(self, model: Model) -> None:
        self._outputs = TeacherOutputs(model, Feed(DATA.train, CPU), view_seed=7)
        self.views: list[int] = []

    def rows(
        self, index: Tensor, host: Tensor, view: int, *, need: frozenset[str], augment: Augment
    ) -> Outputs | None:
        self.views.append(view)
        return self._outputs.rows(index, host, view, need=need, augment=augment)

    def live(self, images: Tensor, *, need: frozenset[str]) -> Outputs:
        return self._outputs.live(images, need=need)

    def boxes(self) -> Tensor:
        return self._outputs.boxes()


KD = DistillSpec(method="kd")
Trained: TypeAlias = tuple[list[Epoch], Model, Counted]


def trained(
    taught_to: float,
    distill: DistillSpec = KD,
    *,
    checkpoint: Checkpoint | None = None,
    pause_at: int | None = None,
) -> Trained:
    model, source = tiny_model(), Counted(tiny_model(1).freeze())
    torch.manual_seed(5)
    distiller = distiller_for(distill, model, tiny_model(1).freeze())
    session = Session(data=DATA, spec=SPEC, seed=0, view_seed=7, device=CPU, teachers=(source,))
    torch.manual_seed(6)
    epochs = train(
        model, distiller, session, checkpoint=checkpoint, pause_at=pause_at, taught_to=taught_to
    )
    return epochs, model, source


@pytest.mark.parametrize(
    "distill",
    [
        DistillSpec(),
        DistillSpec(alpha=1.0),
        DistillSpec(method="fitnet+kd", order="progressive"),
        DistillSpec(method="at+kd", balance="gradnorm"),
        DistillSpec(method="at+kd", balance="uncertainty"),
    ],
    ids=str,
)
def test_after_the_epoch_that_reaches_the_teacher_the_labels_alone_teach(distill: DistillSpec):
    epochs, _, source = trained(0.0, distill)
    assert [epoch.is_taught for epoch in epochs] == [True, False, False, False, False]
    assert set(source.views) == {1}
    for epoch in epochs[1:]:
        assert {epoch.losses[name] for name in distill.method.split("+")} == {0.0}
        if distill.balance != "uncertainty":
            assert epoch.losses["loss"] == pytest.approx(epoch.losses["task"], rel=1e-6)
    assert epochs[-1].losses["task"] < epochs[0].losses["task"]


def test_it_lasts_to_the_end_where_the_teacher_stays_better():
    found = trained(1.01)
    assert all(epoch.is_taught for epoch in found[0])
    assert set(found[2].views) == {1, 2, 3, 4, 5}
    assert_same_training(found[:2], trained(inf)[:2])


def test_it_stays_ended_when_the_student_falls_below_its_teacher_again():
    values = [epoch.measured for epoch in trained(inf)[0]]
    best = trained(max(values))[0]
    first = 1 + values.index(max(values))
    assert [epoch.is_taught for epoch in best] == [number <= first for number in range(1, 6)]


@pytest.mark.parametrize("taught_to", [0.0, 0.5])
def test_a_training_in_stages_ends_it_at_the_same_epoch(taught_to: float, tmp_path: Path):
    file = tmp_path / "it.pt"
    for pause_at in (1, 3, 5):
        found = trained(taught_to, checkpoint=Checkpoint(file, "it"), pause_at=pause_at)
    assert_same_training(found[:2], trained(taught_to)[:2])


def taught_by(
    path: Path,
    until: str = "teacher",
    *,
    value: float,
    method: str = "kd",
    labelled: bool = True,
    whole: bool = True,
) -> int | None:
    """Return the epochs in which a trial was taught by a teacher of a value on validation."""
    trial = context(path)
    if not labelled:
        labels = DATA.train.labels.clone()
        labels[-1] = -1
        unlabelled = replace(DATA, train=replace(DATA.train, labels=labels))
        trial = replace(trial, data=unlabelled)
    if not whole:
        two = (0, 1)
        teacher = Model(
            "t", tiny_model().network, tiny_model().preprocess, Known(columns=two, classes=two)
        )
        outputs = TeacherOutputs(teacher.freeze(), Feed(DATA.train, CPU), view_seed=0)
        trial = replace(trial, teachers=(teacher,), outputs=(outputs,))
    found = evaluate_teachers(trial.teachers, DATA.val, DATA, trial.task, CPU)
    trial = replace(trial, teacher_evaluation=lambda: replace(found, value=value))
    distill = DistillSpec(method=method, until=until)
    outcome = run_trial(replace(PLAIN, distill=distill), trial, path)
    assert outcome.state == "complete", outcome.reason
    rows = list(csv.DictReader((path / "curve.csv").read_text().splitlines()))
    taught = [row for row in rows if row.get(f"loss_{method}") != "0"]
    assert taught == rows[: len(taught)]
    assert len(taught) == (len(rows) if outcome.taught_epochs is None else outcome.taught_epochs)
    return outcome.taught_epochs


def test_a_trial_ends_it_at_the_teachers_value_on_validation(tmp_path: Path):
    assert taught_by(tmp_path, "teacher", value=0.0) == 1
    assert taught_by(tmp_path, "teacher", value=1.01) is None
    assert taught_by(tmp_path, "end", value=0.0) is None


def test_images_without_a_label_keep_their_teacher(tmp_path: Path):
    assert taught_by(tmp_path, value=0.0, labelled=False) is None


def test_a_teacher_of_some_classes_has_no_metric_to_reach(tmp_path: Path):
    assert taught_by(tmp_path, value=0.0, whole=False) is None


@pytest.mark.parametrize("method", ["none", "label_smoothing", "self_distill"])
def test_a_method_without_a_teacher_has_none_to_reach(method: str, tmp_path: Path):
    assert taught_by(tmp_path, value=0.0, method=method) is None


def test_other_ends_are_refused():
    with pytest.raises(SpecError, match=r"method\.until: 'teach'"):
        DistillSpec(until="teach")
    with pytest.raises(SpecError, match=r"none.*method\.until"):
        check(DistillSpec(method="none", until="end"))
