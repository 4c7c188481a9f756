"""Cosine distance of embeddings."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdsearch.methods.base import DistillLoss
from kdsearch.space import Float


class Cosine(DistillLoss):
    """Match the direction of the teacher's embedding.

    loss = 1 - cosine(student, teacher), mean over the batch: the loss of Model-Optimizer and the
    usual alignment to frozen image-text embeddings, whose length has no meaning (Radford et al.,
    ICML 2021, 2103.00020). Computed as half the squared distance of the unit vectors, which is
    the same and does not cancel near equality. student, teacher: [B, D] embeddings; the
    Distiller projects the student's. No labels, so unlabelled images count too.
    """

    need = "embedding"
    align = frozenset({"channels"})
    ranges = {"weight": Float(low=0.1, high=100.0, log=True)}

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the target is unused."""
        apart = F.normalize(student, dim=1) - F.normalize(teacher, dim=1)
        return apart.square().sum(dim=1).mean() / 2
