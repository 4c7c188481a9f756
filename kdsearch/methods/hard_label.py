"""Distillation from the teacher's decisions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdsearch.methods.base import DistillLoss
from kdsearch.space import Float


class HardLabel(DistillLoss):
    """Learn the teacher's most probable class (Touvron et al., ICML 2021, 2012.12877, eq. 3).

    loss = cross-entropy of the student with argmax(teacher), mean over the batch.
    A student with a distillation token (family `deit`) learns from the teacher by that token's
    head and from the labels by the other one; at inference the two heads' logits are averaged.
    Any other student learns both by its one head. Labels are unused: a mixed or unlabelled image
    has the class that the teacher predicts. student, teacher: [B, K] raw logits.
    """

    need = "logits"
    is_distance = False
    ranges = {"alpha": Float(low=0.1, high=0.9)}

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the target is unused."""
        return F.cross_entropy(student, teacher.argmax(dim=1))
