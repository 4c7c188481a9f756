"""Distillation through Pearson correlation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.methods.base import PairLoss
from kdsearch.space import Choice, Float
from kdsearch.spec import PAIRWISE_MAPPINGS


class PKD(PairLoss):
    """Match maps standardised by channel (Cao et al., NeurIPS 2022, 2207.02039).

    loss = sum over the pairs of mean((n(student) - n(teacher))^2) / 2, where n subtracts each
    channel's mean over batch and positions and divides by its unbiased standard deviation + 1e-6:
    1 - Pearson's correlation, averaged over channels. The paper's weight is 6, for the levels of
    a detector's pyramid. A channel's only value is standardised to 0.
    student, teacher: lists of maps of equal shapes. The loss of a sample depends on its batch.
    """

    align = frozenset({"channels", "size"})
    weight = 6.0
    ranges = {
        "weight": Float(low=0.1, high=100.0, log=True),
        "mapping": Choice(options=PAIRWISE_MAPPINGS),
    }

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of one pair."""
        return F.mse_loss(_standardised(student), _standardised(teacher)) / 2


def _standardised(maps: Tensor) -> Tensor:
    axes = (0, 2, 3)
    is_one = maps.shape[0] * maps.shape[2:].numel() == 1
    std, mean = torch.std_mean(maps, axes, correction=0 if is_one else 1, keepdim=True)
    return (maps - mean) / (std + 1e-6)
