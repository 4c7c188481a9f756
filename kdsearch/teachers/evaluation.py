"""The metric of teachers on a split, whichever classes they know.

Teachers that know classes answer together; classes that a teacher does not know get no share of its
answer. Boxes of all teachers count, where one gives boxes alone. Where none knows any class, each
image gets the class whose mean embedding is nearest by cosine (a measure of the features alone; see
Snell et al., NeurIPS 2017, arXiv:1703.05175).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.data.base import ImageData, ImageSet
from kdsearch.models.model import Model, batches
from kdsearch.tasks import Task
from kdsearch.training.teacher_cache.parts import BOXES
from kdsearch.training.validation import Evaluation, measured

NEAREST = " (nearest class means of its features)"


def knows_none(teachers: Sequence[Model]) -> bool:
    """Return whether none of the teachers knows a class of the data."""
    return all(teacher.classes == () for teacher in teachers)


def evaluate_teachers(
    teachers: Sequence[Model], images: ImageSet, data: ImageData, task: Task, device: torch.device
) -> Evaluation:
    """Return the metric of the teachers' common answer on a split, each at the same weight."""
    meter = task.meter(device)
    meter.keep_images(len(images))
    predict = common_answer(teachers, data, task, device)
    return Evaluation(measured(predict, batches(images, device), meter), meter.details())


def common_answer(
    teachers: Sequence[Model], data: ImageData, task: Task, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """Return a function from uint8 images to the common answer of teachers of equal weight."""
    if knows_none(teachers):
        means = [
            _class_means(teacher, data.labelled, data.num_classes, device) for teacher in teachers
        ]
    knowing = [teacher for teacher in teachers if teacher.classes != ()]

    def predict(batch: Tensor) -> Tensor:
        if not knowing:
            near = [
                _cosine(each, batch) @ mean.T for each, mean in zip(teachers, means, strict=True)
            ]
            return torch.stack(near).mean(dim=0)
        found = [full_answer(each, batch, data.num_classes) for each in knowing]
        if any(each.teaches == BOXES for each in knowing):
            return found[0] if len(found) == 1 else torch.cat(found, dim=1)
        answers = task.stacked(found)
        weights = torch.full(answers.shape[:2], 1 / len(knowing), device=answers.device)
        return task.blend(weights, answers)

    return predict


def full_answer(teacher: Model, batch: Tensor, num_classes: int) -> Tensor:
    """Return the answer for all classes; logits of those that it does not know are the lowest."""
    logits: Tensor = teacher(batch)
    if teacher.classes is None or teacher.teaches == BOXES:
        return logits
    lowest = torch.finfo(logits.dtype).min / 2  # finite, as answers may be resized
    whole = logits.new_full((len(logits), num_classes, *logits.shape[2:]), lowest)
    whole[:, list(teacher.classes)] = logits
    return whole


@torch.no_grad()
def _class_means(teacher: Model, train: ImageSet, num_classes: int, device: torch.device) -> Tensor:
    """Return the mean [K, D] of the normalised embeddings of each class."""
    sums: Tensor | None = None
    for batch, labels in batches(train, device):
        near = _cosine(teacher, batch)
        sums = near.new_zeros(num_classes, near.shape[1]) if sums is None else sums
        sums.index_add_(0, labels, near)
    assert sums is not None
    return F.normalize(sums, dim=1)


def _cosine(teacher: Model, batch: Tensor) -> Tensor:
    embedding = teacher.features(batch, need=frozenset({"embedding"})).embedding
    return F.normalize(embedding.float(), dim=1)
