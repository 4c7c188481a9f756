"""Masked generative distillation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.errors import SpecError
from kdsearch.methods.base import DistillLoss, Setting, fraction
from kdsearch.space import Choice, Float
from kdsearch.spec import PAIRWISE_MAPPINGS

MASKS = ("channels", "positions")


class MGD(DistillLoss):
    """Generate the teacher's map from a masked student map (Yang et al., ECCV 2022, 2205.01529).

    loss = sum over the pairs of mean((G(mask * student) - teacher)^2); G: 3x3-ReLU-3x3. The mask
    drops each channel of each sample with probability `ratio`, as the paper's classification
    code does; none in eval mode. mask: `positions` drops positions of all channels, as its code
    for detection (ratio 0.65) and segmentation (0.75) does. The code for classes weighs the sum
    over C, H and W by 7e-5: for a ResNet-34 teacher 7e-5 * 512 * 7 * 7 = 1.75 of the mean, the
    weight here. Other codes take the mean with weight 1. G holds 18 * C^2 weights.
    student, teacher: lists of maps of equal shapes. Raises SpecError for ratio outside [0, 1).
    """

    need = "stages"
    align = frozenset({"channels", "size"})
    is_pairwise = True
    is_distance = False
    weight = 1.75
    ranges = {
        "weight": Float(low=0.05, high=50.0, log=True),
        "mapping": Choice(options=PAIRWISE_MAPPINGS),
        "ratio": Float(low=0.0, high=0.75),
    }

    def __init__(self, ratio: float = 0.15, mask: str = "channels") -> None:
        super().__init__()
        self.ratio = fraction("mgd.ratio", ratio)
        if mask not in MASKS:
            raise SpecError(f"method mgd.mask: {mask!r} is not one of {', '.join(MASKS)}")
        self.mask = mask

    def build(self, student: Sequence[Tensor], teacher: Sequence[Tensor], setting: Setting) -> None:
        """Make a generator for each pair."""
        self.generators = nn.ModuleList(_generator(found.shape[1]) for found in teacher)

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], target: Tensor
    ) -> Tensor:
        """Return the loss; the target is unused."""
        pairs = zip(self.generators, student, teacher, strict=True)
        losses = [F.mse_loss(generate(self._masked(s)), t) for generate, s, t in pairs]
        return torch.stack(losses).sum()

    def _masked(self, maps: Tensor) -> Tensor:
        if not self.training:
            return maps
        one = maps[:, :, :1, :1] if self.mask == "channels" else maps[:, :1]
        return maps * (torch.rand_like(one) >= self.ratio)


def _generator(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
    )
