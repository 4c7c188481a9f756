"""Hints: regression of the teacher's maps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdsearch.methods.base import PairLoss
from kdsearch.space import Choice, Float
from kdsearch.spec import PAIRWISE_MAPPINGS


class FitNet(PairLoss):
    """Match feature maps element by element (Romero et al., ICLR 2015, arXiv:1412.6550).

    loss = sum over the pairs of mean((student - teacher)^2). The reference weight, 100, is for
    one pair. Hints are trained together with the task, not in the paper's earlier phase.
    student, teacher: lists of maps of equal shapes; the Distiller's adapter is the regressor.
    """

    align = frozenset({"channels", "size"})
    weight = 100.0
    ranges = {
        "weight": Float(low=1.0, high=1000.0, log=True),
        "mapping": Choice(options=PAIRWISE_MAPPINGS),
    }

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of one pair."""
        return F.mse_loss(student, teacher)
