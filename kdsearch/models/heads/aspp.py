"""Atrous pyramid pooling with a decoder (Chen et al., ECCV 2018, arXiv:1802.02611)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdsearch.errors import SpecError
from kdsearch.models.heads.base import (
    CHANNELS,
    Head,
    at_stride,
    conv_relu,
    require,
    resized,
    separable,
)
from kdsearch.models.students.base import Knob
from kdsearch.space import Int

_STRIDE = 4  # of the logits
_LOW_LEVEL = 48  # channels of the fine map
RATE = Int(low=1, high=12)


class ASPP(Head):
    """DeepLabV3+ with separable convolutions: the deepest map at three rates, logits at stride 4.

    channels: of each branch. rate: the rates are rate, 2 rate and 3 rate; a rate beyond the map
    sees its centre alone.
    """

    knobs: ClassVar[Mapping[str, Knob]] = MappingProxyType({"channels": CHANNELS, "rate": RATE})

    def __init__(
        self,
        maps: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        channels: int = 64,
        rate: int = 2,
    ) -> None:
        super().__init__()
        require("aspp", channels)
        if rate not in RATE:
            raise SpecError(f"head aspp: rate {rate!r} is not a whole number from 1 to {RATE.high}")
        self.fine, count = at_stride(strides, _STRIDE), maps[-1]
        self.point = conv_relu(count, channels)
        self.branches = nn.ModuleList(_dilated(count, channels, rate * i) for i in (1, 2, 3))
        self.pooled = nn.Sequential(nn.Conv2d(count, channels, kernel_size=1), nn.ReLU())
        self.project = conv_relu(5 * channels, channels)
        self.low_level = conv_relu(maps[self.fine], _LOW_LEVEL)
        self.merge = conv_relu(channels + _LOW_LEVEL, channels)
        self.smooth = separable(channels)
        self.classify = nn.Conv2d(channels, num_classes, kernel_size=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the logits at stride 4."""
        x, fine = maps[-1], maps[self.fine]
        mean = self.pooled(x.mean(dim=(2, 3), keepdim=True))
        mean = mean.expand(-1, -1, x.shape[2], x.shape[3])
        found = [self.point(x), *(branch(x) for branch in self.branches), mean]
        deep = resized(self.project(torch.cat(found, dim=1)), fine.shape[2:])
        merged = self.merge(torch.cat([deep, self.low_level(fine)], dim=1))
        logits: Tensor = self.classify(self.smooth(merged))
        return logits


def _dilated(in_channels: int, out_channels: int, rate: int) -> nn.Sequential:
    """Return a depthwise 3x3 convolution at a rate and a 1x1 one, with BatchNorm and ReLU."""
    depthwise = nn.Conv2d(
        in_channels,
        in_channels,
        3,
        padding=rate,
        dilation=rate,
        groups=in_channels,
        bias=False,
    )
    return nn.Sequential(
        depthwise, nn.BatchNorm2d(in_channels), nn.ReLU(), conv_relu(in_channels, out_channels)
    )
