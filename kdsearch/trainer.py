"""The training loop. It knows no method's name and no study: losses come from the Distiller.

What is evaluated and kept is an exponential moving average of the weights: at early epochs it
ranks students as they will finish far better than the raw weights do.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from kdsearch.data.base import Augment, ImageData, ImageSet
from kdsearch.data.views import augmented, targets
from kdsearch.distiller import Distiller
from kdsearch.errors import TrainingError
from kdsearch.model import Model, batches, evaluating
from kdsearch.optimizers import Optimizers
from kdsearch.spec import TrainSpec
from kdsearch.taps import Outputs
from kdsearch.tasks.classification import evaluate


class TeacherSource(Protocol):
    """Where the teacher's outputs come from: a live network or a store."""

    def __call__(
        self,
        images: Tensor,
        index: Tensor,
        view: int,
        *,
        need: frozenset[str],
        augment: Augment,
    ) -> Outputs:
        """Return the outputs for `images`: the samples `index` under `view` of `augment`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One epoch's record: mean losses by name, validation accuracy of the average, seconds."""

    number: int
    losses: dict[str, float]
    val: float
    lr: float
    seconds: float


_FEW_PIXELS = 2**15
OnEpoch = Callable[[Epoch, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What one training needs besides the model and its losses.

    seed: order of the batches. view_seed: the images' views, shared by all trials of a study.
    Unlabelled images take part only where a teacher is heard. turn: entered for each step and each
    evaluation, so that others can measure between them.
    """

    data: ImageData
    spec: TrainSpec
    seed: int
    view_seed: int
    device: torch.device
    teachers: tuple[TeacherSource, ...] = ()
    turn: AbstractContextManager[None] = field(default_factory=nullcontext)

    @property
    def augment(self) -> Augment:
        """Return what the views of this training go through."""
        return replace(self.data.augment, policy=self.spec.policy, mix=self.spec.mix)


def train(
    model: Model, distiller: Distiller, session: Session, *, on_epoch: OnEpoch | None = None
) -> list[Epoch]:
    """Train `model` in place and return its epochs; it ends up with the averaged weights.

    on_epoch: is told each epoch and how many there will be.

    Raises TrainingError when the loss is no longer finite.
    """
    with _threads_for(model.preprocess.resolution**2 * session.spec.batch_size):
        try:
            return _train(model, distiller, session, on_epoch)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise TrainingError(
                "BatchNorm cannot train on one image at a time; raise train.batch_size, or lower "
                "train.accumulate"
            ) from error


def _train(
    model: Model, distiller: Distiller, session: Session, on_epoch: OnEpoch | None
) -> list[Epoch]:
    spec, device = session.spec, session.device
    model.to(device)
    distiller.to(device)
    chosen = session.data.train if distiller.needs_teacher else session.data.labelled
    train_set = ImageSet(chosen.images.to(device), chosen.labels.to(device))
    order = torch.Generator().manual_seed(session.seed)
    batch_size = min(spec.batch_size, len(train_set))
    steps = len(train_set) // batch_size
    optimizers = Optimizers(model, distiller, spec, steps * spec.epochs)
    average = _Average(model, spec.ema)
    epochs: list[Epoch] = []
    for number in range(1, spec.epochs + 1):
        started = time.perf_counter()
        lr = optimizers.lr
        model.train()
        distiller.train()
        permutation = torch.randperm(len(train_set), generator=order).to(device)
        totals: dict[str, Tensor] = {}
        batches_of_epoch = torch.split(permutation[: steps * batch_size], batch_size)
        for step, whole in enumerate(batches_of_epoch, start=(number - 1) * steps):
            with session.turn:
                optimizers.zero_grad()
                for index in torch.tensor_split(whole, min(spec.accumulate, batch_size)):
                    share = len(index) / batch_size
                    losses = _losses(
                        model,
                        distiller,
                        session,
                        train_set,
                        index,
                        view=(number - 1) % spec.views + 1 if spec.views else number,
                        progress=step / (steps * spec.epochs),
                    )
                    torch.autograd.backward(share * losses["loss"])
                    for name, value in losses.items():
                        total = totals.get(name, torch.zeros((), device=device))
                        totals[name] = total + share * value.detach()
                optimizers.step()
                average.update()
        means = {name: float(total) / steps for name, total in totals.items()}
        if not math.isfinite(means["loss"]):
            raise TrainingError(f"the loss became {means['loss']} in epoch {number}")
        with session.turn:
            val = accuracy(average.model, session.data.val, device)
        epoch = Epoch(
            number=number,
            losses=means,
            val=val,
            lr=lr,
            seconds=time.perf_counter() - started,
        )
        epochs.append(epoch)
        if on_epoch is not None:
            on_epoch(epoch, spec.epochs)
    model.load_state_dict(average.model.state_dict())
    model.eval()
    return epochs


def accuracy(model: Model, images: ImageSet, device: torch.device) -> float:
    """Return the top-1 accuracy of a model in evaluation mode on a split, in [0, 1]."""
    with evaluating(model), torch.no_grad():
        return evaluate(model, batches(images, device))


def _losses(
    model: Model,
    distiller: Distiller,
    session: Session,
    train_set: ImageSet,
    index: Tensor,
    *,
    view: int,
    progress: float,
) -> dict[str, Tensor]:
    """Return the losses on one batch; teachers and student see the same view of it."""
    data, seed, augment = session.data, session.view_seed, session.augment
    images = augmented(train_set.images, index, view, seed=seed, augment=augment)
    target = targets(
        train_set.labels,
        index,
        view,
        seed=seed,
        augment=augment,
        num_classes=data.num_classes,
        size=data.size,
    )
    teachers = [
        teacher(images, index, view, need=distiller.need, augment=augment)
        for teacher in session.teachers
        if distiller.needs_teacher
    ]
    with torch.autocast(
        session.device.type, torch.bfloat16, enabled=_is_half(session.spec, session.device)
    ):
        student = model.features(images, need=distiller.student_need)
        losses: dict[str, Tensor] = distiller(student, teachers, target, progress=progress)
    return losses


def _is_half(spec: TrainSpec, device: torch.device) -> bool:
    """Say whether the step runs in bfloat16; `auto`: on a GPU that has it."""
    if spec.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return spec.precision == "bf16"


@contextmanager
def _threads_for(pixels: int) -> Iterator[None]:
    """Use one CPU thread for steps on few pixels, where a second one only costs.

    A step on 64 images, one thread against two: 6.2 and 7.6 ms at 8 px; on 128 images of 32 px:
    132 and 77 ms. The number depends on the sizes alone, so results repeat bit for bit.
    """
    threads = torch.get_num_threads()
    if pixels <= _FEW_PIXELS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Average:
    """An exponential moving average of a model's weights and floating-point buffers.

    The decay grows as (1 + t) / (10 + t) up to its value, so that the start is soon forgotten.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model = copy.deepcopy(model).freeze()
        self._decay = decay
        self._updates = 0
        held, current = self.model.state_dict(), model.state_dict()  # these share their memory
        floating = [name for name, value in held.items() if value.is_floating_point()]
        self._floating = [held[name] for name in floating], [current[name] for name in floating]
        self._others = [(held[name], current[name]) for name in held.keys() - floating]

    @torch.no_grad()
    def update(self) -> None:
        self._updates += 1
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        torch._foreach_lerp_(*self._floating, 1 - decay)
        for held, current in self._others:
            held.copy_(current)
