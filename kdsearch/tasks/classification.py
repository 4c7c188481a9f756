"""Image classification: one class an image, measured by top-1 accuracy.

Labels are class indices, int64 [N], -1 for none; an answer is logits [B, K]. Where images are
mixed, targets are the shares of the classes, [B, K].
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.data.base import UNLABELLED, Augment
from kdsearch.data.views import ViewSeeds, mixed_with, own_share
from kdsearch.errors import DataError
from kdsearch.models import students
from kdsearch.tasks.base import ACCURACY, Facts, Meter, Task

if TYPE_CHECKING:
    from kdsearch.data.sizes import Size
    from kdsearch.models.features import Outputs
    from kdsearch.spec import StudentSpec


class Classification(Task):
    """One of K classes an image."""

    name = "classification"
    metric = ACCURACY
    output = "logits"

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

    def loss(self, outputs: Outputs, target: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """Return the mean cross-entropy over what is labelled, 0 where nothing is.

        A mixed image weighs as much as its row sums to. Smoothing spreads its part of that weight
        evenly over the classes.
        """
        logits = outputs.logits
        if target.ndim == 1:
            total = F.cross_entropy(
                logits,
                target,
                ignore_index=UNLABELLED,
                label_smoothing=smoothing,
                reduction="sum",
            )
            return total / (target != UNLABELLED).sum().clamp(min=1)
        mass = target.sum(dim=1, keepdim=True)
        smooth = (1 - smoothing) * target + smoothing / target.shape[1] * mass
        labelled = mass.sum()
        total = F.cross_entropy(logits, smooth, reduction="sum")
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
        """Return a meter of top-1 accuracy."""
        return Top1(device)

    def chance(self, labels: Tensor) -> float | None:
        """Return the share of the most frequent class among the labelled images."""
        counts = labels[labels != UNLABELLED].bincount()
        return float(counts.max() / counts.sum()) if len(counts) else None

    def agreement(self, ours: Tensor, theirs: Tensor) -> float:
        """Return the share of images [N, K] of which both predict the same class."""
        return float((ours.argmax(dim=1) == theirs.argmax(dim=1)).float().mean())

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
            head_outputs=count,
            output=f"float32 [batch, {count}], in the order of: {self._names()}",
            limits=(
                f"It knows these {count} classes alone, and gives every image one of them. "
                "It was evaluated on images like those it was trained on.",
                "Shares of classes are not calibrated.",
            ),
        )


class Top1(Meter):
    """The share of labelled images whose largest logit is their label's."""

    def __init__(self, device: torch.device) -> None:
        self._hits = torch.zeros((), dtype=torch.int64, device=device)
        self._images = torch.zeros((), dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Forget all images."""
        self._hits.zero_()
        self._images.zero_()

    def add(self, answer: Tensor, labels: Tensor) -> None:
        """Count a batch: logits [B, K], class indices [B]."""
        self._hits.add_((answer.argmax(dim=1) == labels).sum())
        self._images.add_((labels != UNLABELLED).sum())

    def value(self) -> float:
        """Return the accuracy in [0, 1]."""
        images = int(self._images)
        if not images:
            raise DataError("there are no images to evaluate on")
        return int(self._hits) / images
