"""ConvNeXt (Liu et al., CVPR 2022, arXiv:2201.03545), at the widths of its `atto` form.

No layer scale: branches that start at 1e-6 help dozens of blocks through hundreds of epochs and
keep small nets asleep through the few they get here; the LayerNorm at the entrance of each branch
bounds it already. Three stages below 64 px, four from 64 px; the patch of the stem is 1 px (a 3x3
convolution) below 32 px, 2 below 64 px, else 4.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from torch import Tensor, nn

from kdsearch.data.sizes import Size, as_size
from kdsearch.models.students.base import (
    LARGE,
    ConvStudent,
    Knob,
    accept,
    chained,
    dealt,
    scaled,
    shrinks_early,
)
from kdsearch.space import Choice, Float, Int

CHANNELS = (40, 80, 160, 320)
KERNELS = (3, 5, 7)
EXPANSION = 4
EPS = 1e-6  # of a LayerNorm, as the paper's code has it


_TIMM = (
    (re.compile(r"^head\.norm\."), "norm."),
    (re.compile(r"^head\.fc\."), "head."),
    (re.compile(r"\.downsample\."), ".0.shrink."),
    (re.compile(r"\.blocks\."), "."),
    (re.compile(r"\.conv_dw\."), ".depthwise."),
    (re.compile(r"(?<=\d)\.norm\."), ".mlp.0."),
    (re.compile(r"\.mlp\.fc1\."), ".mlp.1."),
    (re.compile(r"\.mlp\.fc2\."), ".mlp.3."),
)


class ConvNeXt(ConvStudent):
    """`width` multiplies the channels, `depth` counts blocks in all, `kernel` is theirs."""

    knobs: ClassVar[Mapping[str, Knob]] = {
        "width": Float(low=0.25, high=2.0, log=True),
        "depth": Int(low=4, high=12),
        "kernel": Choice(options=KERNELS),
    }
    pretrained = "timm:convnext_atto"  # the same at width 1 and kernel 7, but for six blocks

    @staticmethod
    def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of timm's convnext_atto, its layer scale multiplied into the MLP."""
        found = {}
        for name, tensor in state.items():
            block, _, leaf = name.rpartition(".mlp.fc2.")
            if name.endswith(".gamma"):
                continue
            if block:
                scale = state[f"{block}.gamma"]
                tensor = tensor.flatten(1) * scale[:, None] if leaf == "weight" else tensor * scale
            elif ".mlp.fc1.weight" in name:
                tensor = tensor.flatten(1)
            for theirs, own in _TIMM:
                name = theirs.sub(own, name)
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
        kernel: int = 5,
    ) -> None:
        base = CHANNELS if shrinks_early(resolution) else CHANNELS[:3]
        accept(
            "convnext",
            in_channels=in_channels,
            num_classes=num_classes,
            resolution=resolution,
            width=(width, Float(low=0.01, high=32)),
            depth=(depth, Int(low=len(base), high=512)),
            kernel=(kernel, Choice(options=KERNELS)),
        )
        channels = [scaled(count, width) for count in base]
        sources = [channels[0], *channels]
        block = partial(_Block, kernel=kernel)
        stages = [
            chained(block, sources[i], channels[i], depth=blocks, stride=1 + (i > 0))
            for i, blocks in enumerate(dealt(depth, len(base)))
        ]
        super().__init__(
            stem=_stem(in_channels, channels[0], resolution),
            stages=stages,
            norm=nn.LayerNorm(channels[-1], eps=EPS),
            embedding=channels[-1],
            num_classes=num_classes,
        )


def _stem(in_channels: int, out_channels: int, resolution: int | Size) -> nn.Sequential:
    side = max(as_size(resolution))
    patch = 1 if side < LARGE // 2 else 2 if side < LARGE else 4
    conv = (
        nn.Conv2d(in_channels, out_channels, 3, padding=1)
        if patch == 1
        else nn.Conv2d(in_channels, out_channels, patch, stride=patch)
    )
    return nn.Sequential(conv, _ChannelNorm(out_channels, eps=EPS))


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of the same shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Block(nn.Module):
    """Depthwise convolution and a two-layer perceptron; where strided, after a 2x2 convolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, kernel: int) -> None:
        super().__init__()
        self.shrink = (
            nn.Identity()
            if stride == 1
            else nn.Sequential(
                _ChannelNorm(in_channels, eps=EPS),
                nn.Conv2d(in_channels, out_channels, stride, stride=stride),
            )
        )
        self.depthwise = nn.Conv2d(
            out_channels, out_channels, kernel, padding=kernel // 2, groups=out_channels
        )
        inner = EXPANSION * out_channels
        self.mlp = nn.Sequential(
            nn.LayerNorm(out_channels, eps=EPS),
            nn.Linear(out_channels, inner),
            nn.GELU(),
            nn.Linear(inner, out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return a map of out_channels, `stride` times smaller."""
        x = self.shrink(x)
        out: Tensor = self.mlp(self.depthwise(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x + out
