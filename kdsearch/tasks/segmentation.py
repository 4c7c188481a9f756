"""Semantic segmentation: one class a pixel, measured by mIoU.

Labels are masks uint8 [N, H, W], 255 (void) where a pixel has no class. An answer is logits
[B, K, h, w] at the stride of the head, or classes [B, H, W]. Logits are resized to the labels,
bilinearly; labels are never resized, except for rows, which are pixels at the logits' stride.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.data.base import SEGMENTATION, VOID, Augment
from kdsearch.data.sizes import Size
from kdsearch.data.views import ViewSeeds, moved
from kdsearch.models import dense
from kdsearch.models.heads.base import resized
from kdsearch.spec import StudentSpec
from kdsearch.tasks._miou import MIOU, PIXEL_ACCURACY, MeanIoU, predicted
from kdsearch.tasks._position_task import PositionTask
from kdsearch.tasks._strip import strip
from kdsearch.tasks.base import Answer, Facts, Meter
from kdsearch.train_spec import TrainSpec

if TYPE_CHECKING:
    from kdsearch.models.features import Outputs


class Segmentation(PositionTask):
    """One of K classes a pixel."""

    name = SEGMENTATION
    metric = MIOU
    also = (PIXEL_ACCURACY,)
    output = "logits"
    is_dense = True
    auto_teacher = StudentSpec(
        family="resnet",
        knobs={"width": 1.0, "depth": 9, "head.kind": "fpn", "head.channels": 96},
    )
    auto_recipe = TrainSpec(
        epochs=30, batch_size=16, optimizer="adamw", lr=2e-3, weight_decay=0.05, ema=0.99, scale=0.5
    )

    def network(self, spec: StudentSpec, *, channels: int, size: Size) -> nn.Module:
        """Return a body under a head that gives K logits at each position."""
        own = self.input_size(size, spec.resolution)
        return dense.build(spec, channels=channels, num_classes=len(self.classes), size=own)

    def target(
        self, labels: Tensor, index: Tensor, seeds: ViewSeeds, augment: Augment, size: Size
    ) -> Tensor:
        """Return the masks of a view, uint8 [B, H, W]. Raises DataError for mixup."""
        return moved(labels, index, seeds, augment)

    def class_weights(self, labels: Tensor, power: float) -> Tensor:
        """Return the weight of each class, [K], by its pixels; a class without any gets 0."""
        counts = _counts(labels, len(self.classes)).double()
        weights = counts.clamp(min=1) ** -power * (counts > 0)
        return (weights * counts.sum() / (weights * counts).sum()).float()

    def loss(
        self,
        outputs: Outputs,
        target: Tensor,
        *,
        smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> Tensor:
        """Return the mean cross-entropy over the pixels that have a class, 0 where none has.

        class_weights: [K], factors on the parts of the classes.
        """
        logits = resized(_widened(outputs.logits), target.shape[1:])
        total = F.cross_entropy(
            logits,
            target.long(),
            weight=None if class_weights is None else class_weights.to(logits.dtype),
            ignore_index=VOID,
            label_smoothing=smoothing,
            reduction="sum",
        )
        return total / (target != VOID).sum().clamp(min=1)

    def rows(
        self, student: Outputs, teacher: Outputs | None, target: Tensor | None
    ) -> tuple[Outputs, Outputs | None, Tensor | None]:
        """Return pixels as rows, at the finer of the two strides: logits [n, K], classes [n].

        Void pixels have the teacher's most probable class, -1 without a teacher. The coarser logits
        are resized bilinearly.
        """
        sizes = [outputs.logits.shape[2:] for outputs in (student, teacher) if outputs is not None]
        size = max(sizes, key=lambda found: found.numel())
        mine = replace(student, logits=_flat(resized(student.logits, size)))
        theirs = teacher
        if teacher is not None:
            theirs = replace(teacher, logits=_flat(resized(teacher.logits, size)))
        if target is None:
            return mine, theirs, None
        classes = F.interpolate(target[:, None].float(), size, mode="nearest").long().flatten()
        best = -1 if theirs is None else theirs.logits.argmax(dim=1)
        return mine, theirs, torch.where(classes == VOID, best, classes)

    def stacked(self, answers: Sequence[Tensor]) -> Tensor:
        """Return the answers of T teachers at the finest of their strides, [B, T, K, h, w]."""
        size = max((answer.shape[2:] for answer in answers), key=lambda found: found.numel())
        return torch.stack([resized(answer, size) for answer in answers], dim=1)

    def image_losses(self, answers: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy [B, T] of each image, 0 without a label."""
        known = (target != VOID).flatten(1).sum(dim=1).clamp(min=1)
        found = [
            F.cross_entropy(
                resized(answer.float(), target.shape[1:]),
                target.long(),
                ignore_index=VOID,
                reduction="none",
            )
            for answer in answers.unbind(dim=1)
        ]
        return torch.stack([loss.flatten(1).sum(dim=1) / known for loss in found], dim=1)

    def blend(self, weights: Tensor, answers: Tensor) -> Tensor:
        """Return log of the weighted mean of the teachers' probabilities, [B, K, h, w]."""
        logs = F.log_softmax(answers.float(), dim=2)
        return (weights.log()[:, :, None, None, None] + logs).logsumexp(dim=1)

    def labelled_by(self, target: Tensor, teacher: Outputs) -> Tensor:
        """Return the target as it is: `rows` labels void pixels, methods on maps leave them out."""
        return target

    def meter(self, device: torch.device) -> Meter:
        """Return a meter of mIoU."""
        return MeanIoU(device, len(self.classes), self.metric.key)

    def chance(self, labels: Tensor) -> float | None:
        """Return the mIoU of the best single class everywhere."""
        counts = _counts(labels, len(self.classes)).double()
        present = (counts > 0).sum()
        return float(counts.max() / counts.sum() / present) if present else None

    def agreement(self, ours: Tensor, theirs: Tensor) -> float:
        """Return the share of positions of which both predict the same class."""
        return float((predicted(ours) == predicted(theirs)).double().mean())

    def picture(self, images: Tensor, labels: Tensor, answers: Mapping[str, Answer]) -> bytes:
        """Return a strip of each image: itself, truth, answers, and where these are wrong."""
        size = labels.shape[1:]
        found = {
            name: predicted(resized(_widened(answer(images)), size))
            for name, answer in answers.items()
        }
        return strip(images, labels, found, self.classes, self.shown_colours())

    def decoded(self, network: nn.Module, size: Size) -> nn.Module:
        """Return a network that answers with the class of each pixel, uint8 [B, H, W]."""
        return Decoded(network, size)

    def facts(self) -> Facts:
        """Return the facts for the card of a segmenter."""
        count = len(self.classes)
        return Facts(
            pipeline_tag="image-segmentation",
            script="writes the mask and an overlay of each image",
            names=("mask_of", "sides", "upright"),
            snippet=(
                'canvas, image = sides(metadata["image_size"]), upright("image.png")',
                "mask = mask_of(answer[0], image.size, canvas)",
                'print(json.loads(metadata["classes"])[mask[0, 0]])  # of the first pixel',
            ),
            output=(
                f"float32 [batch, {count}, h, w] at the stride of the head, in the order of: "
                f"{', '.join(self.classes)}; resize bilinearly, then take the largest"
            ),
            limits=(
                f"It knows these {count} classes alone, and gives every pixel one of them. "
                "It was evaluated on images like those it was trained on.",
            ),
        )


class Decoded(nn.Module):
    """A network whose logits are resized to (H, W); the largest is the answer, uint8 [B, H, W]."""

    def __init__(self, network: nn.Module, size: Size) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x: Tensor) -> Tensor:
        """Return the classes."""
        return resized(self.network(x), self.size).argmax(dim=1).to(torch.uint8)


def _widened(logits: Tensor) -> Tensor:
    """Return logits in float32, or unchanged if they are wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _flat(logits: Tensor) -> Tensor:
    """Return [B * h * w, K] of [B, K, h, w]."""
    return logits.permute(0, 2, 3, 1).flatten(0, 2)


def _counts(labels: Tensor, classes: int) -> Tensor:
    """Return the pixels of each class, int64 [K]."""
    found = torch.zeros(VOID + 1, dtype=torch.int64)
    for mask in labels:
        found += mask.flatten().bincount(minlength=VOID + 1)
    return found[:classes]
