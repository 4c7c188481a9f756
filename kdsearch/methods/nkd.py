"""Normalised knowledge distillation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdsearch.methods.base import DistillLoss, positive
from kdsearch.space import Float

_REMOVED = -1e9  # finite, unlike -inf: its probability is 0, and 0 times its logarithm is 0


class NKD(DistillLoss):
    """Match the target class, and the others by cross-entropy (Yang et al., ICCV 2023, 2303.13005).

    loss = -mean of p_y(teacher) * log p_y(student) - gamma * T^2 * mean over the batch of
    sum over k != y of q_k(teacher) * log q_k(student), where p is the softmax at T = 1 and q the
    one over the K - 1 other classes at T. A cross-entropy: its least value is above 0.
    student, teacher: [B, K] raw logits, K >= 3: of two classes only one is left, with
    probability 1. A mixed image counts as its larger share, as in the
    authors' code. Raises SpecError for K < 3, temperature or gamma <= 0.
    """

    need = "logits"
    labels = "hard"
    min_classes = 3
    is_distance = False
    ranges = {
        "alpha": Float(low=0.1, high=0.9),
        "temperature": Float(low=1.0, high=16.0, log=True),
        "gamma": Float(low=0.15, high=15.0, log=True),
    }

    def __init__(self, temperature: float = 1.0, gamma: float = 1.5) -> None:
        super().__init__()
        self.temperature = positive("nkd.temperature", temperature)
        self.gamma = positive("nkd.gamma", gamma)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        target = target.unsqueeze(1)
        belief = F.softmax(teacher, dim=1).gather(1, target)
        on_target = -(belief * F.log_softmax(student, dim=1).gather(1, target)).mean()
        others = (z.scatter(1, target, _REMOVED) / self.temperature for z in (student, teacher))
        student_others, teacher_others = others
        on_rest = F.cross_entropy(student_others, F.softmax(teacher_others, dim=1))
        return on_target + self.gamma * self.temperature**2 * on_rest
