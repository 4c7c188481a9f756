"""Weighted soft labels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.methods.base import DistillLoss, positive
from kdsearch.space import Float

_EPSILON = 1e-7


class WSLD(DistillLoss):
    """Weigh soft labels by the progress of the student (Zhou et al., ICLR 2021, arXiv:2102.00650).

    loss = T^2 * mean over the batch of w * KL(softmax(teacher / T) || softmax(student / T)),
    w = 1 - exp(-CE(student) / (CE(teacher) + 1e-7)) with the labels at T = 1 and no gradient: a
    sample that the student fits better than the teacher counts less.
    The authors' cross-entropy differs from KL by the teacher's entropy, so its gradient is the
    same. Constants are their ImageNet pair, T = 2 and 2.5 (for CIFAR-100 it is 4 and 2.25).
    student, teacher: [B, K] raw logits; target: [B], or the probabilities of mixed images, whose
    cross-entropies are with the mixture. Raises SpecError if temperature <= 0.
    """

    need = "logits"
    labels = "mixed"
    weight = 2.5
    ranges = {
        "weight": Float(low=0.25, high=25.0, log=True),
        "temperature": Float(low=1.0, high=16.0, log=True),
    }

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = positive("wsld.temperature", temperature)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        log_student = F.log_softmax(student / self.temperature, dim=1)
        log_teacher = F.log_softmax(teacher / self.temperature, dim=1)
        each = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=1)
        with torch.no_grad():
            surprise = F.cross_entropy(student, target, reduction="none")
            expected = F.cross_entropy(teacher, target, reduction="none")
            left = -torch.expm1(-surprise / (expected + _EPSILON))
        return self.temperature**2 * (left * each).mean()
