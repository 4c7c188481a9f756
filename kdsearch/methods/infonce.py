"""Contrast within the batch, without a memory bank."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.methods.base import DistillLoss, Setting, positive
from kdsearch.space import Float


class InfoNCE(DistillLoss):
    """Contrast teacher embeddings within the batch (Oord et al., 2018, arXiv:1807.03748).

    loss = mean over the batch of the cross-entropy of cosine(project(student_i), teacher_j) / tau
    over j, where j = i is right: bounded below by 0, at log B by chance. project: a linear layer
    to the teacher's width, dropped at inference. Other samples are negatives whatever their
    class, so labels are unused and unlabelled images count too; `crd` spares the same class.
    student, teacher: [B, D] embeddings, D may differ. Raises SpecError if tau <= 0.
    """

    need = "embedding"
    is_distance = False
    min_batch = 2
    ranges = {
        "weight": Float(low=0.1, high=10.0, log=True),
        "tau": Float(low=0.03, high=1.0, log=True),
    }

    def __init__(self, tau: float = 0.1) -> None:
        super().__init__()
        self.tau = positive("infonce.tau", tau)

    def build(self, student: Tensor, teacher: Tensor, setting: Setting) -> None:
        """Make the projection."""
        self.project = nn.Linear(student.shape[1], teacher.shape[1])

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the target is unused."""
        student, teacher = F.normalize(self.project(student), dim=1), F.normalize(teacher, dim=1)
        own = torch.arange(len(student), device=student.device)
        return F.cross_entropy(student @ teacher.T / self.tau, own)
