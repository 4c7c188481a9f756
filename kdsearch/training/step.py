"""One step of a training, on tensors that stay where they are.

All that differs between steps (which samples, their view, the rate, the weights of the terms) is
read from tensors on the device, written once an epoch, so that a step never waits for the host
and a GPU can replay it as a graph. A CPU runs the same lines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from kdsearch import tasks
from kdsearch.data.base import Augment, ImageData, ImageSet
from kdsearch.data.feed import Also, Feed
from kdsearch.data.moves import boxes_moved
from kdsearch.data.views import ViewSeeds, partners, shown, view_seeds
from kdsearch.errors import SpecError
from kdsearch.models.features import Outputs
from kdsearch.models.model import Model
from kdsearch.spec import TrainSpec
from kdsearch.tasks import Task
from kdsearch.training.cuda_graph import Repeated, attributes_of, set_attributes
from kdsearch.training.distiller import Distiller, LossWeights
from kdsearch.training.ema import Kept, ModelEma
from kdsearch.training.inherited import rates_of, still_norms
from kdsearch.training.optimizers import Optimizers

LAST_SHARE = 10  # one in so many epochs, the last ones, shows no mosaics


class TeacherSource(Protocol):
    """Where a teacher's outputs come from: a store, or the live network."""

    def rows(
        self, index: Tensor, host: Tensor, view: int, *, need: frozenset[str], augment: Augment
    ) -> Outputs | None:
        """Return the stored outputs of the samples at `index` [B] in a view; None: compute them.

        host: the same index in CPU memory, so that nothing waits for the GPU.
        """

    def live(self, images: Tensor, *, need: frozenset[str]) -> Outputs:
        """Return the outputs for `images`, uint8 [B, C, S, S]."""

    def boxes(self) -> Tensor:
        """Return a detector's boxes on the plain images, [N, n, 6]; see `Outputs.boxes`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """The form of a step: `fp32`, or `bf16` under autocast; its maps as [B, H, W, C] or not."""

    precision: str = "fp32"
    is_channels_last: bool = False

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise SpecError(f"execution.precision: {self.precision!r} is not fp32 or bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What one training needs besides the model and its losses.

    seed: order of the batches. view_seed: the images' views, shared by all trials of a study.
    Unlabelled images are used only with a teacher. train, val: the data's images on the
    device, where trainings share them. captures: whether a GPU may replay steps as a graph.
    step_lock: held for each step and each evaluation, so that latencies are measured in between.
    """

    data: ImageData
    spec: TrainSpec
    seed: int
    view_seed: int
    device: torch.device
    teachers: tuple[TeacherSource, ...] = ()
    train: Feed | None = None
    val: Feed | None = None
    execution: Execution = Execution()
    captures: bool = True
    step_lock: AbstractContextManager[None] = field(default_factory=nullcontext)

    @property
    def task(self) -> Task:
        """Return the task of the data."""
        return tasks.of(self.data)

    def augment(self, epoch: int = 1) -> Augment:
        """Return the augmentation of the views of an epoch, from 1; the last have no mosaics."""
        spec = self.spec
        is_last = epoch > spec.epochs - math.ceil(spec.epochs / LAST_SHARE)
        return replace(
            self.data.augment,
            policy=spec.policy,
            mix=spec.mix,
            scale=spec.scale,
            mosaic=0.0 if is_last else spec.mosaic,
        )

    @property
    def precision(self) -> str:
        """Return `fp32` or `bf16`: the recipe's, or what is fastest here where that is `auto`."""
        return self.execution.precision if self.spec.precision == "auto" else self.spec.precision

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass and its losses."""
        if self.precision == "bf16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()


class Step:
    """Views, teachers' rows, forward, losses, backward, optimisers, averaged weights, mean losses.

    The model and the distiller are moved to the session's device; `average` follows the model.
    """

    def __init__(self, model: Model, distiller: Distiller, session: Session) -> None:
        spec, device = session.spec, session.device
        self._model = model.to(device)
        if session.execution.is_channels_last:
            model.to(memory_format=torch.channels_last)
        self._distiller = distiller.to(device)
        self._session = session
        self.step_lock = session.step_lock
        self._feed = session.train or Feed(session.data.train, device)
        chosen = session.data.train if distiller.needs_teacher else session.data.labelled
        self._count = len(chosen)  # the unlabelled are the last
        self._batch_size = min(spec.batch_size, self._count)
        self._steps = self._count // self._batch_size
        rates = rates_of(model, spec)
        for weight, rate in rates.items():
            weight.requires_grad_(rate > 0)
        self._still = still_norms(model, spec, rates)
        self._optimizers = Optimizers(model, distiller, spec, self._steps * spec.epochs, rates)
        self.average = ModelEma(model, spec.ema)
        is_best = spec.keep == "best" or (spec.keep == "auto" and bool(model.inherited))
        self.kept = Kept(self.average.model, is_best=is_best)
        self._teachers = session.teachers if distiller.needs_teacher else ()
        self._boxes: list[Tensor] = []
        if "boxes" in distiller.needed_features:
            with self.step_lock:
                self._boxes = [teacher.boxes() for teacher in self._teachers]
        self._stored: list[Outputs | None] = [None] * len(self._teachers)
        self._images: ImageSet | None = None
        self._generator = torch.Generator().manual_seed(session.seed)
        self._place = torch.zeros(1, dtype=torch.int64, device=device)
        self._order = self._place.new_zeros(self._steps, self._batch_size)
        self._samples = torch.empty_like(self._order, device="cpu")
        self._schedule = [distiller.weights_at(0.0)]
        self._weights = self._schedule[0]
        self._table = torch.zeros(self._steps, 2 + len(self._weights.values), device=device)
        self._view, self._augment = 0, session.augment()
        seeds = self._seeds_of(1)
        self._starts = torch.tensor(seeds.starts, device=device)
        self._seeds = ViewSeeds(
            self._starts.unbind(), None if seeds.partners is None else seeds.partners.clone()
        )
        self._totals: dict[str, Tensor] = {}
        self._repeated = Repeated(
            self._work,
            device,
            modules=(model, distiller),
            before_capture=self._optimizers.zero_grad,
            captures=session.captures,
        )

    @property
    def mode(self) -> str:
        """Return precision and layout of the steps, and `graph` or why there is none."""
        layout = " channels_last" * self._session.execution.is_channels_last
        return f"{self._session.precision}{layout} {self._repeated.mode}"

    def epoch(self, number: int, *, is_taught: bool = True) -> None:
        """Train for epoch `number`, from 1; on a GPU the work is then queued, not done.

        is_taught: False where the labels alone teach.
        """
        self._begin(number, is_taught)
        self._take()

    def _take(self) -> None:
        """Take the steps of the epoch that has begun."""
        self._model.train()
        for norm in self._still:
            norm.eval()
        self._distiller.train()
        order = self._order if self._feed.is_resident else self._samples
        for place, (_, images) in enumerate(self._feed.batches(order.unbind(), also=self._also)):
            self._weights = self._schedule[place]
            with self.step_lock:
                self._bring(place, images)
                is_stored = [rows is None for rows in self._stored]
                self._repeated((self._weights.active, self._augment.mosaic, *is_stored))

    def means(self) -> dict[str, float]:
        """Return the means of the epoch's losses by name, once they are known."""
        return {name: float(total) / self._steps for name, total in self._totals.items()}

    def scales(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the task and the weighted terms of the first epoch, whose means these are."""
        return self._distiller.scales(means, 0.5 / self._session.spec.epochs)

    def rate_of(self, number: int) -> float:
        """Return the learning rate at the first step of epoch `number`."""
        return self._optimizers.rate_at((number - 1) * self._steps)

    def close(self) -> None:
        """Free the memory of a graph."""
        self._repeated.close()

    def state(self) -> dict[str, object]:
        """Return all that the next epoch depends on, as tensors and plain values."""
        modules = (self._model, self._distiller, self.average.model)
        state: dict[str, object] = {
            "modules": [module.state_dict() for module in modules],
            "attributes": attributes_of(modules),
            "optimizers": [part.state_dict() for part in self._optimizers.parts],
            "kept": self.kept.state(),
            "order": self._generator.get_state(),
            "random": torch.get_rng_state(),
        }
        if self._session.device.type == "cuda":
            state["cuda_random"] = torch.cuda.get_rng_state(self._session.device)
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Load a state that `state` returned, on the same recipe and device."""
        modules = (self._model, self._distiller, self.average.model)
        for module, held in zip(modules, state["modules"], strict=True):
            module.load_state_dict(held)
        set_attributes(modules, state["attributes"])
        for part, held in zip(self._optimizers.parts, state["optimizers"], strict=True):
            part.load_state_dict(held)
        self._optimizers.share_rate()
        self.kept.restore(state["kept"])
        self._generator.set_state(state["order"])
        torch.set_rng_state(state["random"])
        if "cuda_random" in state:
            torch.cuda.set_rng_state(state["cuda_random"], self._session.device)

    def _seeds_of(self, view: int) -> ViewSeeds:
        session = self._session
        return view_seeds(
            view,
            seed=session.view_seed,
            augment=self._augment,
            count=self._count,
            device=session.device,
        )

    @property
    def _also(self) -> Also | None:
        """Return the function that gives the further samples that the views of a batch show."""
        each, seed = self._augment.partners, self._session.view_seed
        if not each:
            return None
        return partial(partners, view=self._view, seed=seed, count=self._count, each=each)

    def _begin(self, number: int, is_taught: bool = True) -> None:
        """Write what the steps of an epoch read."""
        spec = self._session.spec
        views = spec.views or spec.epochs
        self._view = spec.repeat * views + (number - 1) % views + 1
        self._augment = self._session.augment(number)
        seeds = self._seeds_of(self._view)
        self._starts.copy_(torch.tensor(seeds.starts))
        if self._seeds.partners is not None and seeds.partners is not None:
            self._seeds.partners.copy_(seeds.partners)
            if seeds.partners.is_cuda:  # it may be dropped while this stream has yet to read it
                seeds.partners.record_stream(torch.cuda.current_stream(seeds.partners.device))
        samples = torch.randperm(self._count, generator=self._generator)
        self._samples = samples[: self._order.numel()].view_as(self._order)
        self._order.copy_(self._samples)
        first = (number - 1) * self._steps
        steps = range(first, first + self._steps)
        length = self._steps * self._session.spec.epochs
        self._schedule = [
            self._distiller.weights_at(step / length, is_taught=is_taught) for step in steps
        ]
        self._table.copy_(
            torch.tensor(
                [
                    [self._optimizers.rate_at(step), self.average.share_at(step), *weights.values]
                    for step, weights in zip(steps, self._schedule, strict=True)
                ]
            )
        )
        self._place.zero_()
        for total in self._totals.values():
            total.zero_()

    def _bring(self, place: int, images: ImageSet) -> None:
        """Load images and, for active terms, teachers' rows; a graph reads them in place."""
        need, augment = self._distiller.needed_features, self._augment
        index, host = self._order[place], self._samples[place]
        before = self._images if self._session.device.type == "cuda" else None
        if self._weights.are_terms_active:
            stored = [
                teacher.rows(index, host, self._view, need=need, augment=augment)
                for teacher in self._teachers
            ]
            if before is not None:
                stored = [_into(held, new) for held, new in zip(self._stored, stored, strict=True)]
            self._stored = stored
        self._images = images if before is None else _over(before, images)

    def _work(self) -> None:
        """Do the step that `place` points to, and point to the next one."""
        row = self._table.index_select(0, self._place)[0].unbind()
        index = self._order.index_select(0, self._place)[0]
        self._optimizers.rate.copy_(row[0])
        weights = self._weights.with_values(row[2:])
        self._optimizers.zero_grad()
        for part, stored in self._parts(index):
            share = len(part) / self._batch_size
            losses = self._losses(part, stored, weights)
            torch.autograd.backward(share * losses["loss"])
            for name, value in losses.items():
                if name not in self._totals:
                    self._totals[name] = torch.zeros_like(value, dtype=torch.float32)
                self._totals[name].add_(value.detach(), alpha=share)
        self._optimizers.step()
        self.average.update(row[1])
        self._place.add_(1)

    def _parts(self, index: Tensor) -> Iterator[tuple[Tensor, list[Outputs | None]]]:
        """Yield the parts of a batch, each with what is stored of it."""
        start = 0
        for part in torch.tensor_split(index, min(self._session.spec.accumulate, self._batch_size)):
            rows = slice(start, start + len(part))
            yield part, [_slice(outputs, rows, part) for outputs in self._stored]
            start += len(part)

    def _losses(
        self, index: Tensor, stored: Sequence[Outputs | None], weights: LossWeights
    ) -> dict[str, Tensor]:
        """Return the losses on one batch; teachers and student see the same view of it."""
        session, distiller, augment = self._session, self._distiller, self._augment
        assert self._images is not None
        images = shown(self._images, index, self._seeds, augment)
        labels, size = self._images.labels, session.data.size
        target = session.task.target(labels, index, self._seeds, augment, size)
        teachers: list[Outputs] = []
        if weights.are_terms_active:
            teachers = [
                replace(source.live(images, need=distiller.needed_features), index=index)
                if rows is None
                else rows
                for source, rows in zip(self._teachers, stored, strict=True)
            ]
        if teachers and self._boxes:
            view = (index, self._seeds, augment, size)
            teachers = [
                replace(teacher, boxes=boxes_moved(boxes, *view))
                for teacher, boxes in zip(teachers, self._boxes, strict=True)
            ]
        with session.autocast():
            student = self._model.features(images, need=distiller.student_features)
            losses: dict[str, Tensor] = distiller(student, teachers, target, weights=weights)
        return losses


def _slice(outputs: Outputs | None, rows: slice, index: Tensor) -> Outputs | None:
    if outputs is None:
        return None
    return replace(outputs.map(lambda tensor: tensor[rows]), index=index)


def _into(held: Outputs | None, new: Outputs | None) -> Outputs | None:
    """Copy a step's rows over those of the last one; return the new ones where there were none."""
    if held is None or new is None:
        return new
    for old, tensor in zip(held.tensors(), new.tensors(), strict=True):
        old.copy_(tensor)
    return held


def _over(held: ImageSet, new: ImageSet) -> ImageSet:
    """Copy a batch's images over those of the last one, unless all images stay on the device."""
    if held.rows is None or new.rows is None:
        return new
    return ImageSet(held.images.copy_(new.images), new.labels, held.rows.copy_(new.rows))
