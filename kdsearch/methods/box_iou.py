"""Distillation of a detector's boxes by their overlap."""

from __future__ import annotations

import torch
from torch import Tensor

from kdsearch.errors import SpecError
from kdsearch.methods._points import PointLoss, objectness
from kdsearch.models.boxes import boxes_of, overlaps
from kdsearch.models.features import Outputs
from kdsearch.space import Choice, Float


class BoxIoU(PointLoss):
    """Match the box of each point by generalised IoU (Yang et al., ICCV 2023, arXiv:2308.14286).

    loss = sum over points of w * (1 - GIoU(student, teacher)), over the sum of the teacher's
    largest scores, at least 1 an image; w: the largest gap of the scores, without a gradient.
    guard: only points where the teacher's box is nearer to an object than the student's, as in the
    bounded regression of Chen et al. (NeurIPS 2017); images without labels are not guarded.
    """

    reads = frozenset({"logits", "edges"})
    weight = 4.0
    labels = "mixed"
    ranges = {
        "weight": Float(low=0.5, high=20.0, log=True),
        "guard": Choice(options=(True, False)),
    }

    def __init__(self, guard: bool = True) -> None:
        super().__init__()
        if not isinstance(guard, bool):
            raise SpecError(f"method box_iou.guard: {guard!r} is not true or false")
        self.guard = guard

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the loss. target: boxes [B, M, 5]."""
        assert student.edges is not None
        assert teacher.edges is not None
        scores = self.at_points(teacher.logits)
        boxes = boxes_of(student.edges, self.mine)
        theirs = self.at_points(boxes_of(teacher.edges, self.theirs), mode="nearest")
        weight = (scores.sigmoid() - student.logits.sigmoid()).abs().amax(dim=2).detach()
        if self.guard:
            weight = weight * _is_nearer(theirs, boxes.detach(), target)
        return distance(boxes, theirs, weight) / objectness(scores).sum().clamp(min=len(scores))


def distance(boxes: Tensor, theirs: Tensor, weight: Tensor) -> Tensor:
    """Return the sum of weight * (1 - GIoU) of boxes [..., 4]."""
    return (weight * (1 - overlaps(boxes, theirs)[1])).sum()


def _is_nearer(theirs: Tensor, boxes: Tensor, target: Tensor) -> Tensor:
    """Return where their boxes [B, P, 4] overlap more with an object: bool [B, P]."""
    unknown = target.isnan().flatten(1).any(dim=1)
    objects = target[:, :, None].nan_to_num(-1.0).to(boxes.dtype)
    is_object = objects[..., 4] >= 0
    best = [
        torch.where(is_object, overlaps(objects[..., :4], found[:, None])[0], 0).amax(dim=1)
        for found in (theirs, boxes)
    ]
    return (best[0] > best[1]) | unknown[:, None]
