"""Decoupled knowledge distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.methods.base import DistillLoss, positive
from kdsearch.space import Float


class DKD(DistillLoss):
    """Match the target class and the other classes separately (Zhao et al., CVPR 2022, 2203.08679).

    loss = T^2 * (KL of [p_y, 1 - p_y] + beta * KL of the softmax over the classes but y), mean
    over the batch. The paper's alpha is `weight`. No warm-up.
    student, teacher: [B, K] raw logits, K >= 3: of two classes only one is left, with
    probability 1. Raises SpecError for K < 3, temperature or beta <= 0.
    """

    need = "logits"
    labels = "hard"
    min_classes = 3
    ranges = {
        "alpha": Float(low=0.1, high=0.9),
        "temperature": Float(low=1.0, high=16.0, log=True),
        "beta": Float(low=0.5, high=16.0, log=True),
    }

    def __init__(self, temperature: float = 4.0, beta: float = 8.0) -> None:
        super().__init__()
        self.temperature = positive("dkd.temperature", temperature)
        self.beta = positive("dkd.beta", beta)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the loss."""
        student_target, student_rest = self._decouple(student, target)
        teacher_target, teacher_rest = self._decouple(teacher, target)
        on_target = F.kl_div(student_target, teacher_target, reduction="batchmean", log_target=True)
        on_rest = F.kl_div(student_rest, teacher_rest, reduction="batchmean", log_target=True)
        return self.temperature**2 * (on_target + self.beta * on_rest)

    def _decouple(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return log [p_y, 1 - p_y] and the log-softmax over the other K - 1 classes.

        1 - p_y is summed from the other classes: its logarithm stays finite where p_y rounds
        to 1. Gathering by arithmetic on indices, unlike a mask, does not wait for a GPU.
        """
        scaled = logits / self.temperature
        target = target.unsqueeze(1)
        rest = torch.arange(logits.shape[1] - 1, device=logits.device)
        rest = rest + (rest >= target)
        others = scaled.gather(1, rest)
        pair = torch.cat([scaled.gather(1, target), others.logsumexp(1, keepdim=True)], dim=1)
        return F.log_softmax(pair, dim=1), F.log_softmax(others, dim=1)
