"""Residual networks of basic blocks (He et al., CVPR 2016, arXiv:1512.03385).

Below 64 px the CIFAR form (3x3 stem, three stages of 16, 32, 64 channels), from 64 px the
ImageNet form (7x7 stem and pooling, four stages of 64 to 512).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
from kdsearch.space import Float, Int

_TIMM = (
    (re.compile(r"^fc\."), "head."),
    (re.compile(r"^conv1\."), "stem.0."),
    (re.compile(r"^bn1\."), "stem.1."),
    (re.compile(r"^layer(\d)\."), lambda found: f"stages.{int(found[1]) - 1}."),
    (re.compile(r"\.conv1\."), ".body.0."),
    (re.compile(r"\.bn1\."), ".body.1."),
    (re.compile(r"\.conv2\."), ".body.3."),
    (re.compile(r"\.bn2\."), ".body.4."),
    (re.compile(r"\.downsample\."), ".shortcut."),
)


class ResNet(ConvStudent):
    """`width` multiplies the channels, `depth` counts blocks of two convolutions in all."""

    knobs: ClassVar[Mapping[str, Knob]] = {
        "width": Float(low=0.25, high=2.0, log=True),
        "depth": Int(low=4, high=12),
    }
    pretrained = "timm:resnet18"  # the same network as width 1, depth 8 from 64 px

    @staticmethod
    def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of timm's resnet18 under the names of this family."""
        found = {}
        for name, tensor in state.items():
            for pattern, own in _TIMM:
                name = pattern.sub(own, name)
            found[name] = tensor
        return found

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        resolution: int | Size,
        width: float = 1.0,
        depth: int = 8,
    ) -> None:
        is_large = shrinks_early(resolution)
        base = (64, 128, 256, 512) if is_large else (16, 32, 64)
        accept(
            "resnet",
            in_channels=in_channels,
            num_classes=num_classes,
            resolution=resolution,
            width=(width, Float(low=0.01, high=32)),
            depth=(depth, Int(low=len(base), high=512)),
        )
        channels = [scaled(count, width, multiple=4) for count in base]
        stem = conv_norm(in_channels, channels[0], 7 if is_large else 3, stride=1 + is_large)
        stem.append(nn.ReLU(inplace=True))
        if is_large:
            stem.append(nn.MaxPool2d(3, stride=2, padding=1))
        sources = [channels[0], *channels]
        stages = [
            chained(_Block, sources[i], channels[i], depth=blocks, stride=1 + (i > 0))
            for i, blocks in enumerate(dealt(depth, len(base)))
        ]
        super().__init__(stem=stem, stages=stages, embedding=channels[-1], num_classes=num_classes)


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where shapes change."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *conv_norm(in_channels, out_channels, 3, stride=stride),
            nn.ReLU(inplace=True),
            *conv_norm(out_channels, out_channels, 3),
        )
        is_same = stride == 1 and in_channels == out_channels
        self.shortcut = (
            nn.Identity() if is_same else conv_norm(in_channels, out_channels, 1, stride=stride)
        )
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of out_channels, `stride` times smaller."""
        out: Tensor = self.act(self.body(x) + self.shortcut(x))
        return out
