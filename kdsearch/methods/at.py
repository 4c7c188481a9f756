"""Attention transfer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.methods.base import DistillLoss, Need, Ranges
from kdsearch.space import Choice, Float
from kdsearch.spec import PAIRWISE_MAPPINGS


class AttentionTransfer(DistillLoss):
    """Match spatial attention maps (Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928).

    loss = sum over the pairs of mean((Q(student) - Q(teacher))^2), where Q is the mean of
    squares over channels, [B, H * W], divided by its Euclidean norm. Of two sizes, the larger
    map is averaged down before squaring. Channels may differ; nothing is learned.
    """

    need: ClassVar[Need] = "stages"
    is_pairwise: ClassVar[bool] = True
    weight: ClassVar[float] = 1000.0
    mapping: ClassVar[str] = "stride"
    ranges: ClassVar[Ranges] = {
        "weight": Float(low=10.0, high=10_000.0, log=True),
        "mapping": Choice(options=PAIRWISE_MAPPINGS),
    }

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], target: Tensor
    ) -> Tensor:
        """Return the loss; the target is unused."""
        pairs = zip(student, teacher, strict=True)
        return torch.stack([_distance(s, t) for s, t in pairs]).sum()


def _distance(student: Tensor, teacher: Tensor) -> Tensor:
    height = min(student.shape[2], teacher.shape[2])
    width = min(student.shape[3], teacher.shape[3])
    return F.mse_loss(_attention(student, height, width), _attention(teacher, height, width))


def _attention(maps: Tensor, height: int, width: int) -> Tensor:
    if maps.shape[2:] != (height, width):  # pooling to the same size took 24 of a step's 53 ms
        maps = F.adaptive_avg_pool2d(maps, (height, width))
    return F.normalize(maps.square().mean(1).flatten(1), dim=1)
