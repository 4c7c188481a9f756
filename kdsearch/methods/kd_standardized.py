"""Knowledge distillation from standardised logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.methods.base import DistillLoss, positive
from kdsearch.space import Float

_EPSILON = 1e-7


class StandardizedKD(DistillLoss):
    """Match softened classes of standardised logits (Sun et al., CVPR 2024, 2403.01427).

    loss = T^2 * KL(softmax(Z(teacher) / T) || softmax(Z(student) / T)), mean over the batch;
    Z(z) = (z - mean) / (std + 1e-7) over the classes, std with K - 1 in its denominator.
    The scale of the student's logits is free: only their relative gaps are matched. alpha
    0.9 and weight 10 make the reference's 0.1 * CE + 9 * KD; its authors tune T from 2 on.
    student, teacher: [B, K] raw logits. Raises SpecError if temperature <= 0.
    """

    need = "logits"
    alpha = 0.9
    weight = 10.0
    ranges = {
        "weight": Float(low=1.0, high=100.0, log=True),
        "temperature": Float(low=1.0, high=16.0, log=True),
    }

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = positive("kd_standardized.temperature", temperature)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the target is unused."""
        log_student = F.log_softmax(_standardized(student) / self.temperature, dim=1)
        log_teacher = F.log_softmax(_standardized(teacher) / self.temperature, dim=1)
        divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
        return self.temperature**2 * divergence


def _standardized(logits: Tensor) -> Tensor:
    std, mean = torch.std_mean(logits, dim=1, keepdim=True)
    return (logits - mean) / (std + _EPSILON)
