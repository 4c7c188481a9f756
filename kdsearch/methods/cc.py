"""Correlation congruence."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from kdsearch.methods.base import DistillLoss
from kdsearch.space import Float

_GAMMA = 0.4


class CorrelationCongruence(DistillLoss):
    """Match a kernel matrix over the batch (Peng et al., ICCV 2019, arXiv:1904.01802, eq. 8).

    loss = mean over B^2 of (C(student) - C(teacher))^2, C = exp(-2 g) * sum over p = 0, 1, 2 of
    (2 g * cosine)^p / p!, g = 0.4: the Gaussian kernel of unit vectors, expanded to order 2.
    Only B x B matrices are compared, so widths may differ and nothing is learned. RepDistiller's
    form is not used: its products of neighbours depend on the order of the batch, and its learned
    embedding of the teacher can shrink. weight: the loss is 0.003 for random embeddings and 0.2
    for an untrained student's, which all have one direction, at any B.
    student, teacher: [B, D] embeddings. No labels, so unlabelled images count too.
    """

    need = "embedding"
    weight = 30.0
    min_batch = 2
    ranges = {"weight": Float(low=0.3, high=3000.0, log=True)}

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the target is unused."""
        return F.mse_loss(_kernel(student), _kernel(teacher))


def _kernel(embedding: Tensor) -> Tensor:
    unit = F.normalize(embedding, dim=1)
    exponent = 2 * _GAMMA * (unit @ unit.T)
    return math.exp(-2 * _GAMMA) * (1 + exponent + exponent.square() / 2)
