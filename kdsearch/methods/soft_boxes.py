"""Distillation of the class scores of a detector's true boxes by its teacher's boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from kdsearch.methods._taught_boxes import TaughtBoxes
from kdsearch.methods.base import fraction, positive
from kdsearch.models.boxes import overlaps
from kdsearch.models.features import Outputs
from kdsearch.space import Float
from kdsearch.tasks._assign import Assigned
from kdsearch.tasks.detection import box_loss


class SoftBoxes(TaughtBoxes):
    """Learn the true boxes with the class scores of the teacher's boxes that match them.

    loss = that of the task; the goal of the scores at a point of a matched object is the assigned
    goal, times the best score of each class among the teacher's boxes with an IoU of at least
    `iou`. Other points learn the label, as do classes that the teacher does not know. After
    Mehta and Ozturk (ECCV workshop 2018, 1805.06361), who teach where the teacher sees objects.
    """

    labels = "mixed"
    ranges = {"iou": Float(low=0.3, high=0.8)}

    def __init__(self, iou: float = 0.5) -> None:
        super().__init__()
        self.iou = fraction("soft_boxes.iou", positive("soft_boxes.iou", iou))

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the loss. target: boxes [B, M, 5]."""
        found = self.boxes_of(teacher)
        objects = target.nan_to_num(-1.0).to(found.dtype)
        kinds = objects[..., 4].long().clamp(min=0)
        near = overlaps(objects[:, :, None, :4], found[:, None, :, :4])[0] >= self.iou
        near = near & (found[:, None, :, 5] >= 0)  # [B, M, n]
        taught = near.any(dim=2)
        if self.known is not None:
            taught = taught & (kinds[..., None] == self.known).any(dim=2)
        scores = found.new_zeros(*kinds.shape, student.logits.shape[2])
        places = found[:, None, :, 5].long().clamp(min=0).expand_as(near)
        scores = scores.scatter_reduce(2, places, near * found[:, None, :, 4], "amax")
        hard = torch.zeros_like(scores).scatter_(2, kinds[..., None], 1.0)
        soft = torch.where(taught[..., None], scores, hard)

        def softened(goals: Assigned) -> Assigned:
            index = goals.objects[..., None].expand(-1, -1, soft.shape[2])
            return goals._replace(scores=goals.shares[..., None] * soft.gather(1, index))

        return box_loss(student, target, change=softened)
