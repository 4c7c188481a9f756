"""Distillation of a detector's class scores."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdsearch.methods._points import PointLoss, objectness
from kdsearch.methods.base import positive
from kdsearch.models.features import Outputs
from kdsearch.space import Float


class DetKD(PointLoss):
    """Match the score of each class at each point (Yang et al., ICCV 2023, arXiv:2308.14286).

    loss = sum over points and classes of BCE(student, p) * |p - q|^beta, over the sum of the
    teacher's largest scores, at least 1 an image; p, q: scores of teacher and student. The gap
    weighs the points, and passes a gradient. A softmax over the classes would not see a shift of
    all logits of a point, which is whether there is an object. The authors divide by the positive
    points.
    """

    weight = 1.0
    ranges = {"weight": Float(low=0.1, high=10.0, log=True), "beta": Float(low=0.0, high=2.0)}

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = positive("det_kd.beta", beta, or_zero=True)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the loss; the target is unused."""
        theirs = self.at_points(teacher.logits)
        whole = weighted_entropy(student.logits, theirs.sigmoid(), self.beta).sum()
        return whole / objectness(theirs).sum().clamp(min=len(theirs))


def weighted_entropy(logits: Tensor, scores: Tensor, beta: float) -> Tensor:
    """Return BCE(logits, scores) * |scores - sigmoid(logits)|^beta, [...]."""
    gap = (scores - logits.sigmoid()).abs()
    entropy = F.binary_cross_entropy_with_logits(logits, scores, reduction="none")
    return entropy * gap**beta
