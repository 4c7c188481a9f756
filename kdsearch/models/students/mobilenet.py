"""Inverted residuals with linear bottlenecks (Sandler et al., CVPR 2018, arXiv:1801.04381).

Four stages instead of the paper's seven groups, so that depth deals out evenly. ReLU for ReLU6:
every runtime fuses it. The whole shrinks 8 times below 64 px and 32 times from 64 px.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from kdsearch.data.sizes import Size
from kdsearch.models.students.base import (
    ConvStudent,
    Knob,
    accept,
    chained,
    conv_norm,
    dealt,
    scaled,
    shrinks_early,
)
from kdsearch.space import Choice, Float, Int

STEM = 16
CHANNELS = (24, 40, 80, 160)
NECK = 4
KERNELS = (3, 5, 7)


class MobileNet(ConvStudent):
    """`width` multiplies the channels, `depth` counts blocks in all.

    kernel: side of the depthwise convolutions. expansion: how many times a block widens inside.
    """

    knobs: ClassVar[Mapping[str, Knob]] = {
        "width": Float(low=0.25, high=2.0, log=True),
        "depth": Int(low=4, high=16),
        "kernel": Choice(options=KERNELS),
        "expansion": Int(low=1, high=6),
    }

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        resolution: int | Size,
        width: float = 1.0,
        depth: int = 10,
        kernel: int = 3,
        expansion: int = 4,
    ) -> None:
        accept(
            "mobilenet",
            in_channels=in_channels,
            num_classes=num_classes,
            resolution=resolution,
            width=(width, Float(low=0.01, high=32)),
            depth=(depth, Int(low=len(CHANNELS), high=512)),
            kernel=(kernel, Choice(options=KERNELS)),
            expansion=(expansion, Int(low=1, high=6)),
        )
        is_large = shrinks_early(resolution)
        channels = [scaled(count, width) for count in CHANNELS]
        sources = [scaled(STEM, width), *channels]
        block = partial(_Block, kernel=kernel, expansion=expansion)
        stages = [
            chained(block, sources[i], channels[i], depth=blocks, stride=1 + (is_large or i > 0))
            for i, blocks in enumerate(dealt(depth, len(CHANNELS)))
        ]
        embedding = NECK * channels[-1]
        super().__init__(
            stem=conv_norm(in_channels, sources[0], 3, stride=1 + is_large).append(nn.ReLU()),
            stages=stages,
            neck=conv_norm(channels[-1], embedding, 1).append(nn.ReLU()),
            embedding=embedding,
            num_classes=num_classes,
        )


class _Block(nn.Module):
    """Widen, convolve each channel by itself, narrow; added to the input where shapes allow."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, *, kernel: int, expansion: int
    ) -> None:
        super().__init__()
        inner = in_channels * expansion
        widen = conv_norm(in_channels, inner, 1).append(nn.ReLU()) if expansion > 1 else ()
        self.body = nn.Sequential(
            *widen,
            *conv_norm(inner, inner, kernel, stride=stride, groups=inner),
            nn.ReLU(),
            *conv_norm(inner, out_channels, 1),
        )
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of out_channels, `stride` times smaller."""
        out: Tensor = self.body(x)
        return x + out if self.is_residual else out
