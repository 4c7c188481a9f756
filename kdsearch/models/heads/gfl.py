"""The head of a one-stage detector without anchors, on a pyramid of features.

Each cell of each level answers with a score for each class and a distribution for each edge of a
box (Li et al., NeurIPS 2020, arXiv:2006.04388). The towers are shared by the levels, each with
norms of its own (Lyu et al., arXiv:2212.07784).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdsearch.data.base import DETECTION
from kdsearch.errors import SpecError
from kdsearch.models.boxes import BINS
from kdsearch.models.heads.base import CHANNELS, Head, require
from kdsearch.models.students.base import Knob, conv_norm, described
from kdsearch.space import Choice, Int, Value

_COARSEST = 32  # stride
_RARE = 0.01  # share of positive points that the first scores assume (RetinaNet, 1708.02002)
_FALL = 0.4  # of a bin's logit at first: edges are 2 cells away then
_NECK = Choice(options=("fpn", "pan"))
_DEPTH = Int(low=0, high=4)
_CONVS = Choice(options=("depthwise", "dense"))
_FINEST = Choice(options=(8, 4))


class GFL(Head):
    """A pyramid with a tower for scores and one for edges.

    channels: of the pyramid and the towers. depth, convs: of a tower, see `Tower`. neck: `fpn`, or
    `pan` with a path from fine to coarse on top. finest: least stride of a level.
    """

    task: ClassVar[str] = DETECTION
    knobs: ClassVar[Mapping[str, Knob]] = MappingProxyType(
        {"channels": CHANNELS, "depth": _DEPTH, "convs": _CONVS, "neck": _NECK, "finest": _FINEST}
    )

    def __init__(
        self,
        maps: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        *,
        channels: int = 64,
        depth: int = 2,
        convs: str = "depthwise",
        neck: str = "fpn",
        finest: int = 8,
    ) -> None:
        super().__init__()
        require("gfl", channels)
        values: dict[str, Value] = {"depth": depth, "convs": convs, "neck": neck, "finest": finest}
        for name, value in values.items():
            if value not in self.knobs[name] or isinstance(value, bool):
                raise SpecError(f"head gfl: {name} {value!r} is not {described(self.knobs[name])}")
        chosen = [i for i, stride in enumerate(strides) if finest <= stride <= _COARSEST]
        if not chosen:
            raise SpecError(
                f"head gfl: the body has maps of strides {', '.join(map(str, strides))}, none from "
                f"{finest} to {_COARSEST}"
            )
        self.chosen = slice(chosen[0], chosen[-1] + 1)
        self.neck = Pyramid(maps[self.chosen], channels, is_two_way=neck == "pan")
        self.of_scores, self.of_edges = (
            Tower(channels, depth=depth, convs=convs, levels=len(chosen)) for _ in range(2)
        )
        self.classify = nn.Conv2d(channels, num_classes, kernel_size=1)
        self.locate = nn.Conv2d(channels, 4 * BINS, kernel_size=1)
        assert self.classify.bias is not None
        assert self.locate.bias is not None
        nn.init.normal_(self.classify.weight, std=0.01)
        nn.init.constant_(self.classify.bias, -math.log((1 - _RARE) / _RARE))
        # The first boxes are 4 cells wide, as RetinaNet's anchors: of those of 16 cells, which
        # equal bins give, no small object would have a good one, and none would be learned.
        with torch.no_grad():
            self.locate.bias.view(4, BINS).copy_(-_FALL * torch.arange(BINS))

    def levels(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the levels of the pyramid, fine to coarse."""
        levels: list[Tensor] = self.neck(maps[self.chosen])
        return levels

    def forward(self, levels: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits [B, P, K] and edges [B, P, 4, BINS] of the points of all levels."""
        logits, edges = [], []
        for place, level in enumerate(levels):
            logits.append(_points(self.classify(self.of_scores(level, place))))
            edges.append(_points(self.locate(self.of_edges(level, place))))
        found = torch.cat(logits, dim=1)
        return found, torch.cat(edges, dim=1).reshape(*found.shape[:2], 4, BINS)


class Pyramid(nn.Module):
    """torchvision's feature pyramid (Lin et al., CVPR 2017, 1612.03144).

    is_two_way: with a path from fine to coarse on top (PANet, Liu et al., CVPR 2018, 1803.01534).
    """

    def __init__(self, maps: Sequence[int], channels: int, *, is_two_way: bool) -> None:
        from torchvision.ops import FeaturePyramidNetwork

        super().__init__()
        self.down = FeaturePyramidNetwork(list(maps), channels)
        steps = len(maps) - 1 if is_two_way else 0
        self.up = nn.ModuleList(
            conv_norm(channels, channels, 3, stride=2).append(nn.ReLU()) for _ in range(steps)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return one level [B, channels, h, w] a map."""
        named = OrderedDict((str(i), found) for i, found in enumerate(maps))
        levels = list(self.down(named).values())
        for place, step in enumerate(self.up, start=1):
            levels[place] = levels[place] + step(levels[place - 1])
        return levels


class Tower(nn.Module):
    """Convolutions 3x3 on every level, each with BatchNorm and ReLU; the norms are a level's own.

    convs: `depthwise`, followed by a 1x1 convolution, or `dense`.
    """

    def __init__(self, channels: int, *, depth: int, convs: str, levels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_layer(channels, convs) for _ in range(depth))
        self.norms = nn.ModuleList(
            nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(depth)) for _ in range(levels)
        )

    def forward(self, x: Tensor, level: int) -> Tensor:
        """Return a map like x, which is that level's."""
        norms = self.norms[level]
        assert isinstance(norms, nn.ModuleList)
        for layer, norm in zip(self.layers, norms, strict=True):
            x = norm(layer(x)).relu()
        return x


def _layer(channels: int, convs: str) -> nn.Module:
    if convs == "dense":
        return nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
    )


def _points(maps: Tensor) -> Tensor:
    """Return [B, h * w, C] of maps [B, C, h, w]."""
    return maps.flatten(2).transpose(1, 2)
