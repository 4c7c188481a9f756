"""Distillation by correlation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.linalg import vector_norm

from kdsearch.errors import SpecError
from kdsearch.methods.base import DistillLoss, positive
from kdsearch.space import Float

_EPSILON = 1e-8


class DIST(DistillLoss):
    """Correlate class probabilities, not equate them (Huang et al., NeurIPS 2022, 2205.10536).

    loss = T^2 * (beta * (1 - r over the classes of a sample, mean over the batch)
    + gamma * (1 - r over the batch of a class, mean over the classes)), r: Pearson's correlation
    of the softmax at T, with 1e-8 in the product of the norms (which leaves up to 1e-8 / norm^2
    at equality). The beta part ignores scale and shift of the student's rows, the gamma part those
    of its columns. Some ports add a further relation with the wrong sign; this is the paper's.
    student, teacher: [B, K] raw logits; a batch of one has no correlation and gives gamma * T^2.
    Raises SpecError if temperature <= 0, for beta or gamma below 0 or both 0.
    """

    need = "logits"
    weight = 2.0
    min_batch = 2
    is_distance = False
    ranges = {
        "weight": Float(low=0.2, high=20.0, log=True),
        "temperature": Float(low=1.0, high=16.0, log=True),
    }

    def __init__(self, temperature: float = 1.0, beta: float = 1.0, gamma: float = 1.0) -> None:
        super().__init__()
        self.temperature = positive("dist.temperature", temperature)
        self.beta = positive("dist.beta", beta, or_zero=True)
        self.gamma = positive("dist.gamma", gamma, or_zero=True)
        if not self.beta and not self.gamma:
            raise SpecError("method dist: beta 0 and gamma 0 compare nothing; set one above 0")

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the target is unused."""
        student, teacher = (F.softmax(z / self.temperature, dim=1) for z in (student, teacher))
        within = self.beta * (1 - _correlation(student, teacher, dim=1))
        across = self.gamma * (1 - _correlation(student, teacher, dim=0))
        return self.temperature**2 * (within + across)


def _correlation(student: Tensor, teacher: Tensor, *, dim: int) -> Tensor:
    """Return Pearson's correlation along `dim`, averaged over the other axis."""
    student, teacher = (found - found.mean(dim, keepdim=True) for found in (student, teacher))
    norms: Tensor = vector_norm(student, dim=dim) * vector_norm(teacher, dim=dim)
    return ((student * teacher).sum(dim) / (norms + _EPSILON)).mean()
