"""A decoder with the maps of its body (Ronneberger et al., MICCAI 2015, arXiv:1505.04597)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdsearch.models.heads.base import Head, conv_relu, require, resized


class UNet(Head):
    """From the deepest map up: resized, joined with the next finer map, two 3x3 convolutions.

    Logits have the stride of the finest map. channels: of the last step; each deeper one has twice
    as many, at most four times.
    """

    def __init__(
        self, maps: Sequence[int], strides: Sequence[int], num_classes: int, *, channels: int = 32
    ) -> None:
        super().__init__()
        require("unet", channels)
        steps = []
        below = maps[-1]
        for level in reversed(range(len(maps) - 1)):
            out = channels * min(4, 2**level)
            steps.append(
                nn.Sequential(conv_relu(below + maps[level], out, 3), conv_relu(out, out, 3))
            )
            below = out
        self.steps = nn.ModuleList(steps)
        self.classify = nn.Conv2d(below, num_classes, kernel_size=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the logits at the stride of the finest map."""
        *finer, x = maps
        for step, level in zip(self.steps, reversed(finer), strict=True):
            x = step(torch.cat([resized(x, level.shape[2:]), level], dim=1))
        logits: Tensor = self.classify(x)
        return logits
