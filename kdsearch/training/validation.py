"""Evaluate a model on a split by the meter of its task."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from kdsearch.data.base import ImageSet, no_label
from kdsearch.data.feed import Feed
from kdsearch.models.model import Model, batches, eval_batch
from kdsearch.models.probe import evaluating
from kdsearch.tasks import Details, Meter, Task
from kdsearch.training.cuda_graph import Repeated


@torch.no_grad()
def measured(
    predict: Callable[[Tensor], Tensor], parts: Iterable[tuple[Tensor, Tensor]], meter: Meter
) -> float:
    """Return the metric of answers to (images, labels) batches; it waits for the device once."""
    meter.reset()
    for images, labels in parts:
        meter.add(predict(images), labels)
    return meter.value()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The metric of a network on a split, and the details."""

    value: float
    details: Details


def evaluate(model: Model, images: ImageSet, task: Task, device: torch.device) -> float:
    """Return the task's metric of a model, in evaluation mode, on a split."""
    return evaluate_in_detail(model, images, task, device).value


def evaluate_in_detail(
    model: Model, images: ImageSet, task: Task, device: torch.device
) -> Evaluation:
    """Return the task's metric of a model, in evaluation mode, on a split, with the details."""
    meter = task.meter(device)
    meter.keep_images(len(images))
    with evaluating(model):
        value = measured(model, batches(images, device), meter)
    return Evaluation(value, meter.details())


class Validation:
    """The metric of a model on a split, batch by batch through the same few tensors.

    Batches are as equal as can be, at most 256 images; the last ones are filled up with blanks
    without a label.
    """

    def __init__(self, model: Model, feed: Feed, meter: Meter, *, captures: bool = True) -> None:
        self._model = model
        self._feed = feed
        self._meter = meter
        batches = -(-len(feed) // eval_batch(feed.images.shape[2:]))
        size = -(-len(feed) // batches)
        place = feed.device if feed.is_resident else "cpu"
        self._indices = torch.split(torch.arange(len(feed), device=place), size)
        shape = (size, *feed.images.shape[1:])
        self._batch = torch.zeros(shape, dtype=torch.uint8, device=feed.device)
        labels = feed.images.labels
        self._blank = no_label(labels.dtype)
        self._labels = torch.zeros(size, *labels.shape[1:], dtype=labels.dtype, device=feed.device)
        self._repeated = Repeated(self._work, feed.device, captures=captures and meter.captures)

    def __call__(self) -> float:
        """Return the metric of the model as it is now."""
        self._meter.reset()
        for index, images in self._feed.batches(self._indices):
            self._batch[: len(index)].copy_(images.at(index))
            self._labels.fill_(self._blank)[: len(index)].copy_(images.labels[index])
            self._repeated()
        return self._meter.value()

    def close(self) -> None:
        """Free the memory of a graph."""
        self._repeated.close()

    @torch.no_grad()
    def _work(self) -> None:
        self._meter.add(self._model(self._batch), self._labels)
