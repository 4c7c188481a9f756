"""The loop learns, repeats itself bit for bit, and ends with the averaged weights."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy_data import CPU, distiller_for, tiny_model, toy_data

from kdsearch.data.base import Augment, ImageSet
from kdsearch.data.feed import Feed
from kdsearch.data.views import augmented
from kdsearch.errors import TrainingError
from kdsearch.models.features import Outputs
from kdsearch.models.model import Model
from kdsearch.models.weights import save_weights
from kdsearch.spec import DistillSpec, TrainSpec
from kdsearch.tasks.classification import Classification
from kdsearch.training.ema import ModelEma
from kdsearch.training.step import Execution, Session
from kdsearch.training.teacher_cache import TeacherOutputs
from kdsearch.training.trainer import Epoch, train
from kdsearch.training.validation import evaluate

TASK = Classification()

DATA = toy_data()
SPEC = TrainSpec(epochs=4, batch_size=16, lr=0.05, ema=0.9)
PLAIN = DistillSpec(method="none")


def session(spec: TrainSpec = SPEC, *, seed: int = 0, teacher: Model | None = None) -> Session:
    feed = Feed(DATA.train, CPU)
    outputs = () if teacher is None else (TeacherOutputs(teacher, feed, view_seed=7),)
    return Session(data=DATA, spec=spec, seed=seed, view_seed=7, device=CPU, teachers=outputs)


class Proposal:
    """A live teacher that records its inputs."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.samples: list[tuple[int, Tensor]] = []
        self.images: list[Tensor] = []
        self.needs: set[frozenset[str]] = set()

    def rows(
        self, index: Tensor, host: Tensor, view: int, *, need: frozenset[str], augment: Augment
    ) -> None:
        assert torch.equal(index, host)
        assert augment == DATA.augment
        self.samples.append((view, index.clone()))

    @torch.no_grad()
    def live(self, images: Tensor, *, need: frozenset[str]) -> Outputs:
        self.images.append(images)
        self.needs.add(need)
        return self._model.features(images)


def trained(spec: TrainSpec = SPEC, *, seed: int = 0) -> tuple[Model, list[Epoch]]:
    model = tiny_model()
    return model, train(model, distiller_for(PLAIN, model), session(spec, seed=seed))


def test_separable_classes_are_learned() -> None:
    model, epochs = trained(replace(SPEC, epochs=8))
    assert evaluate(tiny_model(), DATA.test, TASK, CPU) < 0.9
    assert evaluate(model, DATA.test, TASK, CPU) > 0.9
    assert epochs[-1].losses["loss"] < epochs[0].losses["loss"] / 2


def test_the_same_seed_gives_the_same_curve_and_weights_bit_for_bit() -> None:
    (one, curve), (other, again) = trained(), trained()
    for epoch, repeated in zip(curve, again, strict=True):
        assert replace(epoch, seconds=0.0) == replace(repeated, seconds=0.0)
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_another_seed_gives_another_order_of_batches() -> None:
    (_, curve), (_, other) = trained(), trained(seed=1)
    assert curve[0].losses != other[0].losses


def test_the_model_ends_with_the_averaged_weights_and_evaluating() -> None:
    """Without an average (ema = 0) the same steps end at weights of another accuracy."""
    slow = replace(SPEC, epochs=3, lr=0.004)
    (raw, _), (model, epochs) = trained(replace(slow, ema=0.0)), trained(replace(slow, ema=0.999))
    assert (
        evaluate(model, DATA.val, TASK, CPU) == epochs[-1].val != evaluate(raw, DATA.val, TASK, CPU)
    )
    assert not model.training


def test_on_epoch_receives_every_epoch_as_it_is_returned() -> None:
    received: list[tuple[Epoch, int]] = []
    model = tiny_model()
    epochs = train(
        model,
        distiller_for(PLAIN, model),
        session(),
        on_epoch=lambda epoch, total: received.append((epoch, total)),
    )
    assert received == [(epoch, 4) for epoch in epochs]
    assert [epoch.number for epoch in epochs] == [1, 2, 3, 4]


def test_a_batch_larger_than_the_data_is_the_data() -> None:
    _, epochs = trained(replace(SPEC, batch_size=10_000, epochs=1))
    assert math.isfinite(epochs[0].losses["loss"])


def test_the_losses_of_an_epoch_are_means_over_its_steps() -> None:
    """Without a learning rate to speak of and in one batch, they are the initial loss."""
    model = tiny_model()
    distiller = distiller_for(PLAIN, model)
    spec = replace(SPEC, epochs=1, batch_size=96, lr=1e-12)
    every = torch.arange(len(DATA.train))
    view = augmented(DATA.train, every, 1, seed=7, augment=DATA.augment)
    with torch.no_grad():
        outputs = tiny_model().train().features(view)
    (epoch,) = train(model, distiller, session(spec))
    assert epoch.losses.keys() == {"task", "loss"}
    expected = distiller(outputs, [], DATA.train.labels)["task"]
    assert epoch.losses["task"] == pytest.approx(float(expected), rel=1e-4)


def test_an_epoch_shows_each_image_once_under_its_own_view() -> None:
    student, teacher = tiny_model(), tiny_model(1).freeze()
    proposal = Proposal(teacher)
    distiller = distiller_for(DistillSpec(method="kd"), student, teacher)
    train(student, distiller, replace(session(), teachers=(proposal,)))

    shown: dict[int, list[int]] = {}
    for (view, index), images in zip(proposal.samples, proposal.images, strict=True):
        shown.setdefault(view, []).extend(index.tolist())
        expected = augmented(DATA.train, index, view, seed=7, augment=DATA.augment)
        assert torch.equal(images, expected)
    assert list(shown) == [1, 2, 3, 4]
    assert all(sorted(rows) == list(range(96)) for rows in shown.values())
    assert len({tuple(rows) for rows in shown.values()}) == 4
    assert proposal.needs == {frozenset({"logits"})}


def test_a_batch_in_parts_takes_the_same_steps() -> None:
    """tiny_network's BatchNorm sees parts; without it the sum of shares is the whole."""
    spec = replace(SPEC, epochs=2, batch_size=24)
    curves = []
    for accumulate in (1, 2, 3):
        model = tiny_model()
        model.network.module[1] = torch.nn.Identity()
        curves.append(
            train(model, distiller_for(PLAIN, model), session(replace(spec, accumulate=accumulate)))
        )
    for epochs in curves[1:]:
        for epoch, whole in zip(epochs, curves[0], strict=True):
            assert epoch.losses["loss"] == pytest.approx(whole.losses["loss"], rel=1e-4)


def test_fewer_images_than_parts_make_no_empty_part() -> None:
    few = replace(DATA, train=DATA.train.take(torch.arange(3)))
    model = tiny_model()
    spec = replace(SPEC, epochs=1, accumulate=8)
    (epoch,) = train(model, distiller_for(PLAIN, model), replace(session(spec), data=few))
    assert math.isfinite(epoch.losses["loss"])


def test_clipping_bounds_the_first_step_by_rate_times_norm() -> None:
    model = tiny_model()
    before = [p.detach().clone() for p in model.parameters()]
    spec = TrainSpec(epochs=1, batch_size=96, lr=0.1, warmup=0, clip=0.01, weight_decay=0, ema=0)
    train(model, distiller_for(PLAIN, model), session(spec))
    moved = [p - old for p, old in zip(model.parameters(), before, strict=True)]
    length = torch.cat([change.flatten() for change in moved]).norm().item()
    # Nesterov momentum of 0.9 from rest makes 1.9 gradients.
    assert length == pytest.approx(0.1 * 1.9 * 0.01, rel=1e-3)


def test_bfloat16_learns_too_and_gives_other_losses() -> None:
    model, epochs = trained(replace(SPEC, epochs=8, precision="bf16"))
    _, exact = trained(replace(SPEC, epochs=8))
    assert evaluate(model, DATA.test, TASK, CPU) > 0.9
    assert epochs[0].losses != exact[0].losses
    assert epochs[0].losses["loss"] == pytest.approx(exact[0].losses["loss"], rel=0.02)
    assert all(p.dtype is torch.float32 for p in model.parameters())


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
@pytest.mark.parametrize("method", ["none", "kd", "dkd", "wsld"])
def test_mixed_images_teach_with_mixed_labels(mix: str, method: str) -> None:
    student, teacher = tiny_model(), tiny_model(1).freeze()
    spec = replace(SPEC, epochs=8, mix=mix, policy="trivial")
    distiller = distiller_for(DistillSpec(method=method), student, teacher)
    epochs = train(student, distiller, session(spec, teacher=teacher))
    assert epochs[-1].losses["loss"] < epochs[0].losses["loss"]


def with_unlabelled(labelled: int) -> Session:
    labels = torch.where(torch.arange(96) < labelled, DATA.train.labels, -1)
    data = replace(DATA, train=ImageSet(DATA.train.images, labels))
    return replace(session(), data=data)


def test_unlabelled_images_are_seen_only_with_a_teacher() -> None:
    teacher = tiny_model(1).freeze()
    proposal = Proposal(teacher)
    shown = with_unlabelled(32)
    student = tiny_model()
    train(student, distiller_for(DistillSpec(method="kd"), student, teacher),
          replace(shown, teachers=(proposal,)))  # fmt: skip
    seen = torch.cat([index for _, index in proposal.samples])
    assert sorted(seen.tolist()) == sorted(4 * list(range(96)))

    alone, few = tiny_model(), tiny_model()
    train(alone, distiller_for(PLAIN, alone), shown)
    data = replace(DATA, train=DATA.train.take(torch.arange(32)))
    train(few, distiller_for(PLAIN, few), replace(session(), data=data))
    for name, value in few.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name]), name


@pytest.mark.parametrize("method", ["kd", "fitnet", "at+kd"])
def test_stored_and_live_outputs_train_alike(method: str) -> None:
    """float32's rounding apart: a batch's outputs may depend on its size by 1e-7 of the largest."""
    curves = []
    for is_live in (False, True):
        student, teacher = tiny_model(), tiny_model(1).freeze()
        torch.manual_seed(2)
        distiller = distiller_for(DistillSpec(method=method), student, teacher)
        on = session(teacher=teacher)
        curves.append(
            train(student, distiller, replace(on, teachers=(Proposal(teacher),)) if is_live else on)
        )
    for stored, live in zip(*curves, strict=True):
        assert stored.losses == pytest.approx(live.losses, rel=1e-5)
        assert stored.val == live.val


def test_a_pool_of_views_is_seen_in_turn() -> None:
    teacher = tiny_model(1).freeze()
    proposal = Proposal(teacher)
    student = tiny_model()
    distiller = distiller_for(DistillSpec(method="kd"), student, teacher)
    spec = replace(SPEC, epochs=5, batch_size=96, views=2)
    train(student, distiller, replace(session(spec), teachers=(proposal,)))
    assert [view for view, _ in proposal.samples] == [1, 2, 1, 2, 1]


NAN_LOSS = """
from kdsearch.methods.base import DistillLoss

class Broken(DistillLoss):
    need = "logits"

    def forward(self, student, teacher, target):
        return student.sum() * float("nan")
"""


def test_a_loss_that_is_not_a_number_ends_the_training(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(NAN_LOSS)
    model, teacher = tiny_model(), tiny_model(1).freeze()
    spec = DistillSpec(method=f"{tmp_path / 'broken.py'}:Broken")
    with pytest.raises(TrainingError, match="the loss became nan in epoch 1"):
        train(model, distiller_for(spec, model, teacher), session(teacher=teacher))


@pytest.mark.parametrize("method", ["kd", "fitnet", "at", "rkd", "dkd"])
def test_every_kind_of_signal_reaches_the_student(method: str) -> None:
    student, teacher = tiny_model(), tiny_model(1, width=12).freeze()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    distiller = distiller_for(DistillSpec(method=method), student, teacher)
    (epoch,) = train(student, distiller, session(replace(SPEC, epochs=1), teacher=teacher))
    assert {"task", method, "loss"} <= epoch.losses.keys()
    assert epoch.losses[method] > 0
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_adapters_learn_with_the_student() -> None:
    student, teacher = tiny_model(), tiny_model(1, width=12).freeze()
    distiller = distiller_for(DistillSpec(method="fitnet"), student, teacher)
    before = [parameter.detach().clone() for parameter in distiller.parameters()]
    train(student, distiller, session(replace(SPEC, epochs=1), teacher=teacher))
    assert before
    for old, new in zip(before, distiller.parameters(), strict=True):
        assert not torch.equal(old, new)


def test_distilling_from_a_good_teacher_copies_it() -> None:
    teacher, _ = trained(replace(SPEC, epochs=8))
    student = tiny_model(3)
    spec = DistillSpec(method="kd", alpha=1.0, knobs={"temperature": 2.0})
    distiller = distiller_for(spec, student, teacher.freeze())
    train(student, distiller, session(replace(SPEC, epochs=8), teacher=teacher))
    with torch.no_grad():
        same = student(DATA.test.images).argmax(1) == teacher(DATA.test.images).argmax(1)
    assert same.float().mean() > 0.9


def test_epochs_report_the_learning_rate_they_began_with() -> None:
    _, epochs = trained(replace(SPEC, warmup=0.25))
    # Six steps an epoch, so the first epoch is the warm-up: 1/6 of 0.05; the second starts on top.
    # Then half a cosine over 18 steps: cos(pi / 3), cos(2 pi / 3).
    assert [epoch.lr for epoch in epochs] == pytest.approx([0.05 / 6, 0.05, 0.0375, 0.0125])


def test_the_average_moves_by_its_decay_which_grows_from_two_elevenths() -> None:
    model = tiny_model()
    average = ModelEma(model, 0.25)
    start = model.network.module[7].bias.detach().clone()
    with torch.no_grad():
        model.network.module[7].bias += 1
        model.network.module[1].running_mean += 2
        model.network.module[1].num_batches_tracked += 5
    average.update(torch.tensor(average.share_at(0)))
    # Decay 2/11: the average goes 9/11 of the way; then min(0.25, 3/12): 1 - (2/11) / 4 in all.
    held = average.model.network.module
    torch.testing.assert_close(held[7].bias, start + 9 / 11)
    torch.testing.assert_close(held[1].running_mean, torch.full((8,), 18 / 11))
    average.update(torch.tensor(average.share_at(1)))
    torch.testing.assert_close(held[7].bias, start + 1 - 1 / 22)
    assert held[1].num_batches_tracked == 5
    assert not any(parameter.requires_grad for parameter in average.model.parameters())


def test_weights_end_in_the_layout_in_which_they_are_written(tmp_path: Path) -> None:
    """Nobody offers channels_last on a CPU; a few steps of a tiny network it survives."""
    model = tiny_model()
    form = Execution(is_channels_last=True)
    (epoch,) = train(
        model,
        distiller_for(PLAIN, model),
        replace(session(replace(SPEC, epochs=1)), execution=form),
    )
    assert epoch.mode == "fp32 channels_last eager"
    save_weights(model, tmp_path / "it.safetensors")
    assert all(value.is_contiguous() for value in model.state_dict().values())


def test_should_stop_is_called_at_rungs_alone_and_ends_the_training() -> None:
    calls: list[tuple[tuple[float, ...], int]] = []

    def should_stop(curve: tuple[float, ...], epochs: int) -> str | None:
        calls.append((curve, epochs))
        return "enough" if len(curve) == 4 else None

    model, whole = tiny_model(), tiny_model()
    spec = replace(SPEC, epochs=6)
    epochs = train(model, distiller_for(PLAIN, model), session(spec), should_stop=should_stop)
    all_of_them = train(whole, distiller_for(PLAIN, whole), session(spec))
    curve = tuple(epoch.val for epoch in all_of_them)
    assert calls == [(curve[:n], 6) for n in (1, 2, 4)]
    assert [epoch.stopped for epoch in epochs] == ["", "", "", "enough"]
    assert [epoch.val for epoch in epochs] == list(curve[:4])
