"""Distillation as the matching of functions, without labels."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdsearch.methods.base import DistillLoss


class FunctionMatching(DistillLoss):
    """Match class probabilities and nothing else (Beyer et al., CVPR 2022, arXiv:2106.05237).

    loss = KL(softmax(teacher) || softmax(student)), mean over the batch. With alpha 1 no label is
    used, so unlabelled images count like the others. There is no temperature: `kd` has one, and
    the reference is T = 1. The paper's student sees the same crop and mixture as the teacher, over
    very many epochs, with strong MixUp. student, teacher: [B, K] raw logits.
    """

    need = "logits"
    alpha = 1.0

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the target is unused."""
        log_student, log_teacher = F.log_softmax(student, dim=1), F.log_softmax(teacher, dim=1)
        return F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
