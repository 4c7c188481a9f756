"""Image classification: one class an image, measured by top-1 accuracy unless another is chosen.

Labels are class indices, int64 [N], -1 for none; an answer is logits [B, K]. Where images are
mixed, targets are the shares of the classes, [B, K].
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.data.base import UNLABELLED, Augment
from kdsearch.data.views import ViewSeeds, mixed_with, own_share
from kdsearch.errors import DataError, SpecError
from kdsearch.models import students
from kdsearch.tasks.base import (
    ACCURACY,
    MAX_CONFUSION,
    Answer,
    Details,
    Facts,
    Meter,
    Metric,
    Task,
)

if TYPE_CHECKING:
    from kdsearch.data.sizes import Size
    from kdsearch.models.features import Outputs
    from kdsearch.spec import StudentSpec


_TOP = 5
_BATCH = 64
BALANCED = Metric(key="balanced_accuracy", label="balanced accuracy")
TOP_5 = Metric(key="top5", label="top-5 accuracy")
MACRO_F1 = Metric(key="macro_f1", label="macro F1")


class Classification(Task):
    """One of K classes an image."""

    name = "classification"
    metric = ACCURACY
    also = (BALANCED, TOP_5, MACRO_F1)
    output = "logits"
    looked = 1_000

    def __init__(self, classes: Sequence[str] = (), metric: str = "") -> None:
        super().__init__(classes, metric)
        if self.metric == TOP_5 and len(self.classes) <= _TOP:
            raise SpecError(
                f"--metric {TOP_5.key}: of {len(self.classes)} classes every image has the right "
                f"one among its {_TOP} best; it needs at least {_TOP + 1}"
            )

    def metric_on(self, labels: Tensor) -> Metric:
        """Return the metric; in a mean over classes an image of a rare class counts for more.

        design_effect: images times the mean of 1 / images over the classes, over the classes.
        """
        counts = labels[labels != UNLABELLED].bincount()
        counts = counts[counts > 0].double()
        if self.metric not in (BALANCED, MACRO_F1) or not len(counts):
            return self.metric
        effect = float(counts.sum() * counts.reciprocal().mean() / len(counts))
        return replace(self.metric, design_effect=effect)

    def class_weights(self, labels: Tensor, power: float) -> Tensor:
        """Return the weight of each class, [K]; see Task. A class without images gets 0."""
        counts = labels[labels != UNLABELLED].bincount(minlength=len(self.classes)).float()
        weights = counts.clamp(min=1) ** -power * (counts > 0)
        return weights * counts.sum() / (weights * counts).sum()

    def network(self, spec: StudentSpec, *, channels: int, size: Size) -> nn.Module:
        """Return a student whose last layer gives K logits."""
        return students.build(
            spec, in_channels=channels, num_classes=len(self.classes), data_size=size
        )

    def target(
        self, labels: Tensor, index: Tensor, seeds: ViewSeeds, augment: Augment, size: Size
    ) -> Tensor:
        """Return class indices [B], or where images are mixed the shares of the classes [B, K].

        An unlabelled image, int64 -1, has no share: then a row sums to less than 1.
        """
        other = mixed_with(index, seeds)
        if other is None:
            return labels[index]
        share = own_share(index, seeds, augment, size)
        both = torch.stack([labels[index], labels[other]], dim=1)
        shares = torch.stack([share, 1 - share], dim=1) * (both != UNLABELLED)
        found = torch.zeros(len(index), len(self.classes), device=labels.device)
        return found.scatter_add_(1, both.clamp(min=0), shares)

    def loss(
        self,
        outputs: Outputs,
        target: Tensor,
        *,
        smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the mean cross-entropy over what is labelled, 0 where nothing is.

        A mixed image weighs as much as its row sums to. Smoothing spreads its part of that weight
        evenly over the classes. class_weights: [K], factors on the parts of the classes.
        """
        logits = outputs.logits
        if target.ndim == 1:
            total = F.cross_entropy(
                logits,
                target,
                ignore_index=UNLABELLED,
                label_smoothing=smoothing,
                weight=class_weights,
                reduction="sum",
            )
            return total / (target != UNLABELLED).sum().clamp(min=1)
        mass = target.sum(dim=1, keepdim=True)
        smooth = (1 - smoothing) * target + smoothing / target.shape[1] * mass
        labelled = mass.sum()
        total = F.cross_entropy(logits, smooth, weight=class_weights, reduction="sum")
        return total / labelled.where(labelled > 0, 1)

    def rows(
        self, student: Outputs, teacher: Outputs | None, target: Tensor | None
    ) -> tuple[Outputs, Outputs | None, Tensor | None]:
        """Return all three as they are: an image is a row."""
        return student, teacher, target

    def image_losses(self, answers: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy of each image, 0 without a label. answers: [B, T, K]."""
        truth = target
        if target.ndim == 1:
            one_hot = F.one_hot(target.clamp(min=0), answers.shape[2]).float()
            truth = one_hot * (target >= 0)[:, None]
        return -(F.log_softmax(answers.float(), dim=2) * truth[:, None]).sum(dim=2)

    def blend(self, weights: Tensor, answers: Tensor) -> Tensor:
        """Return log of the weighted mean of the teachers' probabilities, [B, K], as logits."""
        return (weights.log()[:, :, None] + F.log_softmax(answers.float(), dim=2)).logsumexp(dim=1)

    def labelled_by(self, target: Tensor, teacher: Outputs) -> Tensor:
        """Give what is unlabelled, all of it or a share, to the teacher's most probable class."""
        best = teacher.logits.argmax(dim=1)
        if target.ndim == 1:
            return torch.where(target < 0, best, target)
        missing = 1 - target.sum(dim=1, keepdim=True)
        return target.scatter_add(1, best[:, None], missing)

    def meter(self, device: torch.device) -> Meter:
        """Return a meter of the metric, and of all the others."""
        return ClassCounts(len(self.classes), self.metric.key, device)

    def chance(self, labels: Tensor) -> float | None:
        """Return the best metric of one constant answer on the labelled images."""
        counts = labels[labels != UNLABELLED].bincount()
        counts = counts[counts > 0].sort(descending=True).values.double()
        if not len(counts):
            return None
        shares = counts / counts.sum()
        if self.metric == TOP_5:
            return float(shares[:_TOP].sum())
        if self.metric == BALANCED:
            return 1 / len(counts)
        most = float(shares[0])
        return 2 * most / (1 + most) / len(counts) if self.metric == MACRO_F1 else most

    def agreement(self, ours: Tensor, theirs: Tensor) -> float:
        """Return the share of images [N, K] of which both predict the same class."""
        return float((ours.argmax(dim=1) == theirs.argmax(dim=1)).float().mean())

    def picture(self, images: Tensor, labels: Tensor, answers: Mapping[str, Answer]) -> bytes:
        """Return a sheet of images that the networks answer differently; empty for none.

        They are evenly spaced among all such images, sorted by which of the networks are right.
        """
        from kdsearch.tasks._thumbnails import MOST, sheet

        found = {
            name: torch.cat([answer(batch).argmax(dim=1) for batch in torch.split(images, _BATCH)])
            for name, answer in answers.items()
        }
        first = next(iter(found.values()))
        differ = torch.stack([other != first for other in found.values()]).any(dim=0).nonzero()
        if not len(differ):
            return b""
        rights = [[bool(answer[i] == labels[i]) for answer in found.values()] for i in differ[:, 0]]
        order = differ[sorted(range(len(rights)), key=lambda place: rights[place]), 0]
        spaced = torch.linspace(0, len(order) - 1, min(MOST, len(order))).round().long()
        chosen = order[spaced]

        def named(rows: Tensor) -> list[str]:
            return [self.classes[i] if self.classes else str(i) for i in rows[chosen].tolist()]

        title = (
            f"{' and '.join(found).capitalize()} disagree on {len(differ):,} of {len(images):,} "
            f"validation images; {len(chosen)} of them"
        )
        shown = {name: named(rows) for name, rows in found.items()}
        return sheet(title, images[chosen], named(labels), shown)

    def metadata(self) -> dict[str, str]:
        """Return the names of the classes, in the order of the logits."""
        return {"classes": json.dumps(self.classes)}

    def _names(self) -> str:
        """Return the classes so that any name is told from the next."""
        return json.dumps(self.classes, ensure_ascii=False)[1:-1]

    def facts(self) -> Facts:
        """Return the facts for the card of a classifier."""
        count = len(self.classes)
        return Facts(
            pipeline_tag="image-classification",
            snippet=('print(json.loads(metadata["classes"])[answer[0].argmax()])',),
            head_outputs=count,
            output=f"float32 [batch, {count}], in the order of: {self._names()}",
            limits=(
                f"It knows these {count} classes alone, and gives every image one of them. "
                "It was evaluated on images like those it was trained on.",
                "Shares of classes are not calibrated.",
            ),
        )


class ClassCounts(Meter):
    """Right answers and answers by class; all metrics follow from them.

    classes: their number, 0 for that of the first answer. key: of the metric that `value` returns.
    """

    def __init__(self, classes: int, key: str, device: torch.device) -> None:
        self._key = key
        self._device = device
        self._make(classes)

    def _make(self, classes: int) -> None:
        """Make the counts; one row more is for images without a label."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int64, device=self._device)

        self._images, self._right = zeros(classes + 1), zeros(classes + 1)
        self._answered, self._in_top = zeros(classes), zeros(1)
        self._confusion = zeros(classes + 1, classes if classes <= MAX_CONFUSION else 0)

    def reset(self) -> None:
        """Forget all images."""
        for counts in (self._images, self._right, self._answered, self._in_top, self._confusion):
            counts.zero_()

    def add(self, answer: Tensor, labels: Tensor) -> None:
        """Count a batch: logits [B, K], class indices [B]."""
        if not len(self._answered):
            self._make(answer.shape[1])
        best, has_label = answer.argmax(dim=1), labels != UNLABELLED
        row = labels.where(has_label, len(self._answered))
        self._images.index_add_(0, row, torch.ones_like(row))
        self._right.index_add_(0, row, (best == labels).long())
        self._answered.index_add_(0, best, has_label.long())
        in_top = answer.topk(min(_TOP, answer.shape[1]), dim=1).indices == labels[:, None]
        self._in_top.add_(in_top.any(dim=1).sum())
        if self._confusion.shape[1]:
            place = row * self._confusion.shape[1] + best
            self._confusion.view(-1).index_add_(0, place, torch.ones_like(place))

    def value(self) -> float:
        """Return the metric in [0, 1]."""
        return self._metrics(*self._counts())[self._key]

    def details(self) -> Details:
        """Return all metrics, the counts by class and the confusion."""
        images, right, answered, in_top = self._counts()
        has_confusion = self._confusion.shape[1] > 0
        return Details(
            metrics=self._metrics(images, right, answered, in_top),
            images=tuple(images.tolist()),
            right=tuple(right.tolist()),
            answered=tuple(answered.tolist()),
            confusion=tuple(map(tuple, self._confusion[:-1].tolist())) if has_confusion else (),
        )

    def _counts(self) -> tuple[Tensor, ...]:
        """Return images, right and answered by class, [K], and those in the top: one wait."""
        counts = (self._images[:-1], self._right[:-1], self._answered, self._in_top)
        sizes = [len(each) for each in counts]
        return torch.split(torch.cat(counts).cpu(), sizes)

    @staticmethod
    def _metrics(
        images: Tensor, right: Tensor, answered: Tensor, in_top: Tensor
    ) -> dict[str, float]:
        """Return each metric; means over classes are over those that have images.

        F1 of a class is 2 right / (images + answers).
        """
        total = int(images.sum())
        if not total:
            raise DataError("there are no images to evaluate on")
        there = images > 0
        hits = right[there].double()
        return {
            ACCURACY.key: int(right.sum()) / total,
            BALANCED.key: float((hits / images[there]).mean()),
            MACRO_F1.key: float((2 * hits / (images[there] + answered[there])).mean()),
            TOP_5.key: int(in_top) / total,
        }
