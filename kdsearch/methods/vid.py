"""Variational information distillation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.methods.base import DistillLoss, Setting
from kdsearch.space import Choice, Float
from kdsearch.spec import PAIRWISE_MAPPINGS

_VARIANCE = 5.0
_EPSILON = 1e-5


class VID(DistillLoss):
    """Maximise a bound on mutual information of paired maps (Ahn et al., CVPR 2019, 1904.05835).

    loss = sum over the pairs of mean((mu(student) - teacher)^2 / v + log v) / 2, the negative
    log-likelihood of the teacher's map under a Gaussian without its constant; it may be below 0.
    mu: 1x1-ReLU-1x1-ReLU-1x1 to the teacher's channels C; v = softplus(s) + 1e-5: one variance a
    channel, 5 at first and trained like mu. (Implementations that keep s in a plain list leave it
    out of the optimiser, and stay at 5.) Cost: a regressor holds C * (C_student + 2 * C) weights.
    student, teacher: lists of maps of equal sizes; channels may differ.
    """

    need = "stages"
    align = frozenset({"size"})
    is_pairwise = True
    is_distance = False
    mapping = "stride"
    ranges = {
        "weight": Float(low=0.1, high=10.0, log=True),
        "mapping": Choice(options=PAIRWISE_MAPPINGS),
    }

    def build(self, student: Sequence[Tensor], teacher: Sequence[Tensor], setting: Setting) -> None:
        """Make a regressor and a vector of variances for each pair."""
        channels = [(s.shape[1], t.shape[1]) for s, t in zip(student, teacher, strict=True)]
        start = math.log(math.expm1(_VARIANCE - _EPSILON))
        self.regressors = nn.ModuleList(_regressor(given, goal) for given, goal in channels)
        self.log_scales = nn.ParameterList(
            torch.full((goal,), start, dtype=torch.float64) for _, goal in channels
        )

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], target: Tensor
    ) -> Tensor:
        """Return the loss; the target is unused."""
        pairs = zip(self.regressors, self.log_scales, student, teacher, strict=True)
        return torch.stack(
            [_surprise(regress(s), scale, t) for regress, scale, s, t in pairs]
        ).sum()


def _regressor(given: int, goal: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(given, goal, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(goal, goal, 1, bias=False),
        nn.ReLU(),
        nn.Conv2d(goal, goal, 1, bias=False),
    )


def _surprise(mean: Tensor, log_scale: Tensor, teacher: Tensor) -> Tensor:
    variance = (F.softplus(log_scale) + _EPSILON)[:, None, None]
    return ((mean - teacher).square() / variance + variance.log()).mean() / 2
