"""Distillation of a detector by the boxes that its teacher found."""

from __future__ import annotations

import torch
from torch import Tensor

from kdsearch.data.boxes import PADDING
from kdsearch.methods._taught_boxes import TaughtBoxes
from kdsearch.methods.base import fraction, positive
from kdsearch.models.features import Outputs
from kdsearch.space import Float
from kdsearch.tasks._assign import Assigned
from kdsearch.tasks.detection import box_loss


class PseudoBoxes(TaughtBoxes):
    """Learn a teacher's boxes as labels (Lee, ICML workshop 2013; Sohn et al., 2020, 2005.04757).

    loss = that of the task on the boxes with a score of at least tau. The losses of a point are
    weighted by the score of its box. Images without a label learn too. Scores of classes that the
    teacher does not know are not taught. The authors weigh all boxes alike, at tau 0.9.
    """

    ranges = {"tau": Float(low=0.2, high=0.7)}

    def __init__(self, tau: float = 0.4) -> None:
        super().__init__()
        self.tau = fraction("pseudo_boxes.tau", positive("pseudo_boxes.tau", tau))

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the loss; the target is unused."""
        found = self.boxes_of(teacher)
        scores = found[..., 4]
        codes = torch.where(scores >= self.tau, found[..., 5], PADDING)
        boxes = torch.cat([found[..., :4], codes[..., None]], dim=2)

        def weighed(goals: Assigned) -> Assigned:
            own = scores.gather(1, goals.objects)
            return goals._replace(
                weights=goals.weights * torch.where(goals.shares > 0, own, 1),
                shares=goals.shares * own,
            )

        return box_loss(student, boxes, change=weighed, classes=self.known)
