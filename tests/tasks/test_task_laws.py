"""Laws of every task: the built-in ones and one from outside the package."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_task import Brightness

from kdsearch import tasks
from kdsearch.data.base import VOID, Augment
from kdsearch.data.boxes import PADDING
from kdsearch.data.views import view_seeds
from kdsearch.errors import DataError
from kdsearch.models.boxes import overlaps, shown
from kdsearch.models.features import Outputs
from kdsearch.spec import StudentSpec
from kdsearch.tasks import Task
from kdsearch.train_spec import MIXES

CPU = torch.device("cpu")
COUNT, SIZE, LARGE = 24, (12, 18), (64, 96)
NAMES = [*tasks.names(), "brightness"]


def made(name: str) -> Task:
    return Brightness() if name == "brightness" else tasks.get(name)(["cat", "dog", "eel"])


def labels_of(name: str) -> torch.Tensor:
    if name == "brightness":
        labels = torch.linspace(0, 1, COUNT)
        labels[-4:] = torch.nan
        return labels
    if name == "segmentation":
        generator = torch.Generator().manual_seed(1)
        masks = torch.randint(0, 3, (COUNT, *SIZE), generator=generator).byte()
        masks[:, -1] = VOID
        masks[-4:] = VOID
        return masks
    if name == "detection":
        generator = torch.Generator().manual_seed(1)
        low = 0.6 * torch.rand(COUNT, 2, 2, generator=generator)
        code = (torch.arange(2 * COUNT) % 3).view(COUNT, 2, 1)
        boxes = torch.cat([low, low + 0.3, code], dim=2)
        boxes[:8, 1] = torch.tensor([0.0, 0.0, 0.0, 0.0, PADDING])
        boxes[-4:] = torch.nan
        return boxes
    return torch.cat([torch.arange(COUNT - 4) % 3, torch.full((4,), -1)])


def size_of(task: Task) -> tuple[int, int]:
    return LARGE if task.name == "detection" else SIZE


def answers_of(task: Task) -> torch.Tensor:
    torch.manual_seed(0)
    size = size_of(task)
    network = task.network(StudentSpec(family="resnet"), channels=1, size=size).eval()
    with torch.no_grad():
        return network(torch.rand(COUNT, 1, *size))


def outputs_of(task: Task, rows: slice) -> Outputs:
    """Return outputs in training whose logits are a leaf."""
    if task.name != "detection":
        answers = answers_of(task)[rows].requires_grad_()
        return Outputs(answers, answers)
    torch.manual_seed(0)
    network = task.network(StudentSpec(family="resnet"), channels=1, size=LARGE).eval()
    with torch.no_grad():
        found = network.features(torch.rand(COUNT, 1, *LARGE)[rows])
    return replace(found, logits=found.logits.requires_grad_())


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_any_view_is_finite_and_has_a_gradient(name: str, mix: str) -> None:
    task, labels = made(name), labels_of(name)[: COUNT - 4]
    augment = Augment(pad=1, flip=True, mix=mix)
    seeds = view_seeds(1, seed=0, augment=augment, count=len(labels), device=CPU)
    if name == "segmentation" and mix == "mixup":
        with pytest.raises(DataError, match="cutmix"):
            task.target(labels, torch.arange(8), seeds, augment, SIZE)
        return
    if name == "detection" and mix != "none":
        with pytest.raises(DataError, match="boxes follow"):
            task.target(labels, torch.arange(8), seeds, augment, SIZE)
        return
    target = task.target(labels, torch.arange(8), seeds, augment, SIZE)
    outputs = outputs_of(task, slice(8))
    for smoothing in (0.0, 0.1):
        loss = task.loss(outputs, target, smoothing=smoothing)
        (slope,) = torch.autograd.grad(loss, outputs.logits)
        assert loss.ndim == 0
        assert torch.isfinite(loss)
        assert slope.abs().sum() > 0


@pytest.mark.parametrize("name", NAMES)
def test_no_label_is_no_loss_and_no_gradient(name: str) -> None:
    task = made(name)
    outputs = outputs_of(task, slice(COUNT - 4, COUNT))
    loss = task.loss(outputs, labels_of(name)[-4:])
    (slope,) = torch.autograd.grad(loss, outputs.logits)
    assert loss.item() == 0
    assert slope.count_nonzero() == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_meter_gives_the_same_value_in_any_batches_and_counts_labelled_images(name: str) -> None:
    task, labels = made(name), labels_of(name)
    answers, known = answers_of(task), COUNT - 4
    meter, found = task.meter(CPU), []
    for chosen, size in ((COUNT, COUNT), (COUNT, 7), (COUNT, 1), (known, known)):
        meter.reset()
        for part in torch.arange(chosen).split(size):
            meter.add(answers[part], labels[part])
        found.append(meter.value())
    assert found == pytest.approx([found[0]] * len(found))
    assert 0 <= found[0] <= 1
    if name == "classification":
        by_hand = (answers[:known].argmax(1) == labels[:known]).double().mean()
    elif name == "segmentation":
        by_hand = iou_by_hand(task, answers, labels)
    elif name == "detection":
        by_hand = precision_by_hand(answers[:known], labels[:known])
    else:
        by_hand = 1 / (1 + (answers[:known, 0] - labels[:known]).abs().double().mean())
    assert found[0] == pytest.approx(float(by_hand))


def iou_by_hand(task: Task, answers: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    size = (labels.shape[1], labels.shape[2])
    large = torch.nn.functional.interpolate(answers, size, mode="bilinear", align_corners=False)
    found, truth = large.argmax(1).numpy(), labels.numpy()
    known = truth != VOID
    ious = []
    for place in range(len(task.classes)):
        mine, theirs = (found == place) & known, truth == place
        ious.append((mine & theirs).sum() / (mine | theirs).sum())
    return np.mean(ious)


def precision_by_hand(answers: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Return mAP50: matches in the order of the scores, precision at 101 points of recall."""
    found = [
        (float(row[4]), image, row) for image, rows in enumerate(shown(answers)) for row in rows
    ]
    each = []
    for kind in range(3):
        free = {
            (image, place)
            for image, rows in enumerate(labels)
            for place, row in enumerate(rows)
            if row[4] == kind
        }
        objects, hits = len(free), []
        for _, image, row in sorted((f for f in found if f[2][5] == kind), key=lambda f: -f[0]):
            near = {
                place: float(overlaps(row[:4], labels[image, place, :4])[0])
                for own, place in free
                if own == image
            }
            best = max(near, key=near.__getitem__, default=None)
            hits.append(best is not None and near[best] >= 0.5)
            if hits[-1]:
                free.remove((image, best))
        right = np.cumsum(hits)
        recall, precision = right / objects, right / np.arange(1, len(hits) + 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
        each.append(np.mean([precision[p] if p < len(precision) else 0 for p in places]))
    return np.mean(each)


@pytest.mark.parametrize("name", NAMES)
def test_a_meter_never_waits_for_its_device(name: str) -> None:
    task, nowhere = made(name), torch.device("meta")
    meter = task.meter(nowhere)
    meter.reset()
    meter.add(answers_of(task).to(nowhere), labels_of(name).to(nowhere))


@pytest.mark.parametrize("name", NAMES)
def test_agreement_of_equal_answers_is_whole_and_of_others_is_not(name: str) -> None:
    task = made(name)
    answers = answers_of(task)
    assert task.agreement(answers, answers) == 1
    other = answers.clone()
    places = torch.arange(answers.shape[1]).view(-1, *[1] * (answers.ndim - 2))
    other[: COUNT // 2] = 10 * answers[: COUNT // 2].flip(1) + places + 1
    assert task.agreement(answers, other) < 1


@pytest.mark.parametrize("name", NAMES)
def test_one_teacher_blended_answers_as_it_does_alone(name: str) -> None:
    task = made(name)
    answers = answers_of(task)
    blended = task.blend(torch.ones(COUNT, 1), answers[:, None])
    assert blended.shape == answers.shape
    assert task.agreement(answers, blended) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_card_has_all_that_it_needs(name: str) -> None:
    task = made(name)
    facts = task.facts()
    assert all((task.name, task.output, task.metric.key, task.metric.label))
    assert all((facts.pipeline_tag, facts.output, facts.limits))
    assert all(isinstance(value, str) for value in task.metadata().values())
    assert task.metric == replace(task.metric)
