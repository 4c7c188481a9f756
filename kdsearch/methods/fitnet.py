"""Hints: regression of the teacher's maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.methods.base import Align, DistillLoss, Need, Ranges
from kdsearch.space import Choice, Float
from kdsearch.spec import PAIRWISE_MAPPINGS


class FitNet(DistillLoss):
    """Match feature maps element by element (Romero et al., ICLR 2015, arXiv:1412.6550).

    loss = sum over the pairs of mean((student - teacher)^2). The reference weight, 100, is for
    one pair. Hints are trained together with the task, not in the paper's earlier phase.
    student, teacher: lists of maps of equal shapes; the Distiller's adapter is the regressor.
    """

    need: ClassVar[Need] = "stages"
    align: ClassVar[frozenset[Align]] = frozenset({"channels", "size"})
    is_pairwise: ClassVar[bool] = True
    weight: ClassVar[float] = 100.0
    ranges: ClassVar[Ranges] = {
        "weight": Float(low=1.0, high=1000.0, log=True),
        "mapping": Choice(options=PAIRWISE_MAPPINGS),
    }

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], target: Tensor
    ) -> Tensor:
        """Return the loss; the target is unused."""
        pairs = zip(student, teacher, strict=True)
        return torch.stack([F.mse_loss(s, t) for s, t in pairs]).sum()
