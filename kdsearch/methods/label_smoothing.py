"""The control for soft targets: smoothed labels without a teacher."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdsearch.methods.base import DistillLoss
from kdsearch.space import Float


class LabelSmoothing(DistillLoss):
    """Learn the uniform distribution along with the labels (Szegedy et al., CVPR 2016, 1512.00567).

    loss = cross-entropy of the student with 1 / K for each class, mean over the batch. alpha is
    the smoothing: (1 - alpha) * task + alpha * loss is cross-entropy with smoothed labels. Part of
    what a teacher's soft targets give is this regularisation alone (Yuan et al., CVPR 2020,
    1909.11723), so a method should be compared with it too. `train.label_smoothing` does the same
    to the task loss under any method; the two add up. student: [B, K] raw logits; no teacher.
    """

    need = "logits"
    reads = frozenset()
    alpha = 0.1
    is_distance = False
    ranges = {"alpha": Float(low=0.01, high=0.5, log=True)}

    def forward(self, student: Tensor, teacher: Tensor | None, target: Tensor) -> Tensor:
        """Return the loss; teacher and target are unused."""
        return -F.log_softmax(student, dim=1).mean()
