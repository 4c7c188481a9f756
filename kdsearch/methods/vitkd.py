"""Feature distillation for vision transformers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.errors import SpecError
from kdsearch.methods.base import DistillLoss, Setting, fraction, positive
from kdsearch.space import Choice, Float
from kdsearch.spec import MAPPINGS

_MIMICKED = 2


class ViTKD(DistillLoss):
    """Mimic shallow stages and generate the deepest one (Yang et al., CVPRW 2024, 2209.02432).

    loss = sum over the first two pairs (but never the last one) of mean((student - teacher)^2)
    + generation * mean((G(masked student) - teacher)^2) at the masked positions of the last pair.
    `ratio` of each sample's positions are masked: a learned token replaces them; G: 3x3-ReLU-3x3.
    In eval mode nothing is masked and every position counts. The paper weighs sums over N tokens
    and D channels by 3e-5 and, over `ratio`, 3e-6: for a DeiT-S teacher, N * D = 196 * 384 =
    75264, means weigh 75264 * 3e-5 = 2.26 and, the ratio cancelling, .226. Hence weight 2.25 and
    generation .1. student, teacher: lists of maps of equal shapes, shallow to deep; pairs between
    the second and the last are not used. Raises SpecError for generation <= 0 and ratio outside
    (0, 1).
    """

    need = "stages"
    align = frozenset({"channels", "size"})
    is_distance = False
    weight = 2.25
    mapping = "even"
    ranges = {
        "weight": Float(low=0.05, high=50.0, log=True),
        "mapping": Choice(options=MAPPINGS),
        "generation": Float(low=0.01, high=1.0, log=True),
        "ratio": Float(low=0.25, high=0.75),
    }

    def __init__(self, generation: float = 0.1, ratio: float = 0.5) -> None:
        super().__init__()
        self.generation = positive("vitkd.generation", generation)
        self.ratio = fraction("vitkd.ratio", ratio)
        if not ratio:
            raise SpecError("method vitkd.ratio: 0 masks nothing; set a number above 0")

    def build(self, student: Sequence[Tensor], teacher: Sequence[Tensor], setting: Setting) -> None:
        """Make the token and the generator of the last pair."""
        channels = teacher[-1].shape[1]
        self.token = nn.Parameter(torch.zeros(channels, 1, 1))
        self.generator = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], target: Tensor
    ) -> Tensor:
        """Return the loss; the target is unused."""
        loss: Tensor = self.generation * self._generated(student[-1], teacher[-1])
        for s, t in list(zip(student[:-1], teacher[:-1], strict=True))[:_MIMICKED]:
            loss = loss + F.mse_loss(s, t)
        return loss

    def _generated(self, student: Tensor, teacher: Tensor) -> Tensor:
        if not self.training:
            return F.mse_loss(self.generator(student), teacher)
        mask, share = _mask(student, self.ratio)
        errors = self.generator(torch.where(mask, self.token, student)) - teacher
        loss: Tensor = (errors.square() * mask).mean() / share
        return loss


def _mask(maps: Tensor, ratio: float) -> tuple[Tensor, float]:
    """Return [B, 1, H, W], true at equally many random positions a sample, and their share."""
    batch, _, height, width = maps.shape
    count = max(1, round(ratio * height * width))
    order = torch.rand(batch, height * width, device=maps.device).argsort(dim=1)
    return (order < count).reshape(batch, 1, height, width), count / (height * width)
