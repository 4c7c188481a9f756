"""Relational knowledge distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.errors import SpecError
from kdsearch.methods.base import DistillLoss, positive
from kdsearch.space import Float


class RKD(DistillLoss):
    """Match the distances and angles between samples (Park et al., CVPR 2019, 1904.05068).

    loss = distance * smooth-L1 of pairwise distances, each divided by the mean of those above 0,
    + angle * smooth-L1 of the cosines at every corner of every triplet; means over B^2 and B^3.
    student, teacher: [B, D] embeddings, D may differ. Memory grows as B^2 * D and, with angles,
    B^3: at B = 256 a tensor of cosines holds 67 MB. Raises SpecError for knobs below 0 or both 0.
    """

    need = "embedding"
    min_batch = 2
    ranges = {
        "weight": Float(low=0.01, high=10.0, log=True),
        "distance": Float(low=2.5, high=250.0, log=True),
        "angle": Float(low=5.0, high=500.0, log=True),
    }

    def __init__(self, distance: float = 25.0, angle: float = 50.0) -> None:
        super().__init__()
        self.distance = positive("rkd.distance", distance, or_zero=True)
        self.angle = positive("rkd.angle", angle, or_zero=True)
        if not self.distance and not self.angle:
            raise SpecError("method rkd: distance 0 and angle 0 compare nothing; set one above 0")

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the target is unused.

        Distances come from differences, not from a Gram matrix, where near points cancel.
        """
        student, teacher = (found.unsqueeze(0) - found.unsqueeze(1) for found in (student, teacher))
        loss = student.new_zeros(())
        if self.distance:
            loss = loss + self.distance * F.smooth_l1_loss(_lengths(student), _lengths(teacher))
        if self.angle:
            loss = loss + self.angle * F.smooth_l1_loss(_cosines(student), _cosines(teacher))
        return loss


def _lengths(differences: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(differences, dim=2)
    mean = lengths.sum() / (lengths > 0).sum().clamp(min=1)
    return lengths / mean.clamp(min=1e-12)


def _cosines(differences: Tensor) -> Tensor:
    directions: Tensor = F.normalize(differences, dim=2)
    return directions @ directions.transpose(1, 2)
