"""The picture of an exported folder: some validation images with the answers to them.

A task without a picture writes none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from kdsearch import atomic
from kdsearch.data.base import is_labelled
from kdsearch.deploy import model_card
from kdsearch.models.model import Model
from kdsearch.report import box_figures
from kdsearch.tasks import Details
from kdsearch.teachers.evaluation import common_answer
from kdsearch.trials.trial import TrialContext


def write_figures(folder: Path, details: Mapping[str, Details], classes: Sequence[str]) -> None:
    """Write the figures of a detector to an exported folder and its card; of others, none.

    details: of evaluations, by split. The test split is shown where it was evaluated.
    """
    drawn = box_figures.drawn(details, classes)
    for name, svg in drawn.items():
        atomic.write(folder / name, svg)
    if drawn:
        model_card.update(folder, figures={name: box_figures.TITLES[name] for name in drawn})


@torch.no_grad()
def write_picture(folder: Path, student: Model, context: TrialContext) -> None:
    """Write the picture to an exported folder and its card, where the task has one.

    It is made of labelled validation images, evenly spaced, of which the task may choose.
    """
    data, task, device = context.data, context.task, context.device
    known = is_labelled(data.val.labels).nonzero()[:, 0].cpu()
    if not len(known):
        return
    chosen = known[torch.linspace(0, len(known) - 1, min(task.looked, len(known))).round().long()]
    student = student.to(device).freeze()

    def of_teachers(images: Tensor) -> Tensor:
        return common_answer(context.teachers, data, task, device)(images.to(device)).cpu()

    def of_student(images: Tensor) -> Tensor:
        answer: Tensor = student(images.to(device))
        return answer.cpu()

    answers = {"teacher": of_teachers, "student": of_student}
    images, labels = data.val.at(chosen).cpu(), data.val.labels[chosen].cpu()
    if content := task.picture(images, labels, answers):
        atomic.write(folder / model_card.PICTURE, content)
        model_card.update(folder, picture=model_card.PICTURE)
