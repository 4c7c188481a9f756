"""Loss scales: each term beside the task in epoch 1, and the warning of one that is far off."""

from __future__ import annotations

import logging

import pytest
import torch
from toy_data import CPU, tiny_model, toy_data

from kdsearch.spec import DistillSpec, TrainSpec
from kdsearch.study.callbacks import Callback, Callbacks
from kdsearch.study.loss_scales import unequal_terms
from kdsearch.tasks.classification import Classification
from kdsearch.training.distiller import Distiller, Side
from kdsearch.training.step import Session
from kdsearch.training.trainer import Epoch, train

DATA = toy_data()


class Live:
    """A teacher whose outputs are computed for each batch."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        self.model = tiny_model().freeze()

    def rows(self, *_: object, **__: object) -> None:
        return None

    @torch.no_grad()
    def live(self, images: torch.Tensor, *, need: frozenset[str]) -> object:
        return self.model.features(images, need=need)


def trained(epochs: int = 2, **recipe: object) -> list[Epoch]:
    teacher = Live()
    torch.manual_seed(0)
    model = tiny_model()
    student, taught = (
        Side(outputs=m.example(DATA.train.at(slice(2))), resolution=8)
        for m in (model, teacher.model)
    )
    distiller = Distiller(
        DistillSpec(**recipe),  # type: ignore[arg-type]
        task=Classification(DATA.classes),
        student=student,
        teachers=[taught],
    )
    session = Session(
        data=DATA,
        spec=TrainSpec(epochs=epochs, batch_size=30, lr=0.01),
        seed=0,
        view_seed=0,
        device=CPU,
        teachers=(teacher,),  # type: ignore[arg-type]
    )
    return train(model, distiller, session)


def test_scales_are_those_of_the_first_epoch_each_term_times_its_weight() -> None:
    first, second = trained(
        method="at+kd", alpha=0.75, knobs={"at.weight": 500.0, "kd.weight": 3.0}
    )
    assert second.scales == {}
    assert set(first.scales) == {"task", "at", "kd"}
    assert first.scales["task"] == pytest.approx(first.losses["task"])
    assert first.scales["at"] == pytest.approx(500 * first.losses["at"])
    assert first.scales["kd"] == pytest.approx(3 * first.losses["kd"])


def test_what_is_off_or_balanced_has_no_scale() -> None:
    assert set(trained(method="kd", alpha=1.0)[0].scales) == {"kd"}
    assert trained(method="kd", balance="uncertainty")[0].scales == {}
    assert trained(method="kd", balance="gradnorm")[0].scales == {}


def test_the_log_has_one_line_a_training(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="kdsearch"):
        (*_, last) = trained(4, method="kd", alpha=0.5)
        trained(2, method="none")
    lines = [line for line in caplog.messages if line.startswith("Loss scales")]
    assert last.number == 4
    (line,) = lines
    assert line.startswith("Loss scales in epoch 1: task ")
    assert ", kd " in line


@pytest.mark.parametrize(
    ("value", "is_named"), [(9.9, False), (10.1, True), (0.011, False), (0.0099, True)]
)
def test_a_term_is_named_beyond_ten_times_and_below_a_hundredth(
    value: float, is_named: bool
) -> None:
    assert bool(unequal_terms({"task": 2.0, "kd": 2 * value})) == is_named
    assert bool(unequal_terms({"task": 2.0, "kd": -2 * value})) == is_named


def test_the_warning_names_the_weight_to_change() -> None:
    assert unequal_terms({"task": 0.5, "kd": 20.0})["kd"] == (
        "Loss scales in epoch 1: kd 20 after its weight, task 0.5; divide method.weight by about "
        "40, or give the smaller one a larger share by method.alpha"
    )
    found = unequal_terms({"task": 0.5, "kd": 1.0, "at": 0.001})
    assert list(found) == ["at"]
    assert "multiply method.at.weight with about 5e+02" in found["at"]
    assert unequal_terms({"task": 0.0, "kd": 1.0}) == unequal_terms({"kd": 1.0}) == {}
    assert unequal_terms({"task": 1.0, "kd": 0.0}) == unequal_terms({}) == {}


class Notes(Callback):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_message(self, text: str) -> None:
        self.notes.append(text)


def test_a_search_names_a_method_once() -> None:
    notes = Notes()
    callbacks = Callbacks([notes])
    epoch = {"losses": {}, "val": 0.5, "lr": 0.1, "seconds": 1.0}
    for number in range(3):
        for method in ("kd", "at"):
            scales = {"task": 1.0, method: 30.0}
            callbacks.on_epoch(number, Epoch(number=1, scales=scales, **epoch), 2)
            callbacks.on_epoch(number, Epoch(number=2, **epoch), 2)
    assert [note.partition(":")[2].split()[0] for note in notes.notes] == ["kd", "at"]
