"""Knowledge distillation from logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdsearch.methods.base import DistillLoss, positive
from kdsearch.space import Float


class KD(DistillLoss):
    """Match softened class probabilities (Hinton et al., 2015, arXiv:1503.02531).

    loss = T^2 * KL(softmax(teacher / T) || softmax(student / T)), mean over the batch.
    student, teacher: [B, K] raw logits. Raises SpecError if temperature <= 0.
    """

    need = "logits"
    alpha = 0.9
    ranges = {
        "alpha": Float(low=0.1, high=1.0),
        "temperature": Float(low=1.0, high=16.0, log=True),
    }

    def __init__(self, temperature: float = 4.0) -> None:
        super().__init__()
        self.temperature = positive("kd.temperature", temperature)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the target is unused."""
        log_student = F.log_softmax(student / self.temperature, dim=1)
        log_teacher = F.log_softmax(teacher / self.temperature, dim=1)
        divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
        return self.temperature**2 * divergence
