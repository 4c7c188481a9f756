"""Probabilistic knowledge transfer."""

from __future__ import annotations

import torch
from torch import Tensor

from kdsearch.methods.base import DistillLoss
from kdsearch.space import Float

_EPSILON = 1e-7


class PKT(DistillLoss):
    """Match the probabilities of neighbours (Passalis and Tefas, ECCV 2018, arXiv:1803.10837).

    loss = mean over B^2 of P(teacher) * log((P(teacher) + 1e-7) / (P(student) + 1e-7)), where P
    is (cosine + 1) / 2 between all samples, each row divided by its sum. The mean, not the sum,
    is why the reference weight is 30,000; the loss shrinks as B grows.
    student, teacher: [B, D] embeddings, D may differ. No labels, so unlabelled images count too.
    """

    need = "embedding"
    weight = 30_000.0
    min_batch = 2
    ranges = {"weight": Float(low=300.0, high=3_000_000.0, log=True)}

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the target is unused."""
        student, teacher = _neighbours(student), _neighbours(teacher)
        return (teacher * ((teacher + _EPSILON) / (student + _EPSILON)).log()).mean()


def _neighbours(embedding: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(embedding, dim=1, keepdim=True)
    unit = embedding / (length + _EPSILON)
    similarity = (unit @ unit.T + 1) / 2
    return similarity / similarity.sum(dim=1, keepdim=True)
