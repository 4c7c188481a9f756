"""A small classifier on a stage, for losses at several depths of a student."""

from __future__ import annotations

from torch import Tensor, nn

_SIDE = 4
_MAX_WIDTH = 512


class Exit(nn.Module):
    """Class logits of a map: [B, C, H, W] to [B, K].

    Depthwise-separable 3x3 convolutions of stride 2 (at least one, of stride 1 on a map within
    4x4) reduce a map to about 4x4; each doubles the channels up to 512 or the map's own number.
    The average over positions gives `width` features for a linear layer.
    """

    def __init__(self, maps: Tensor, classes: int) -> None:
        super().__init__()
        self.width = maps.shape[1]
        side = max(maps.shape[2:])
        steps: list[nn.Module] = []
        while side > _SIDE or not steps:
            stride = 2 if side > _SIDE else 1
            goal = max(self.width, min(stride * self.width, _MAX_WIDTH))
            steps += _separable(self.width, goal, stride)
            self.width, side = goal, -(-side // stride)
        self.body = nn.Sequential(*steps)
        self.head = nn.Linear(self.width, classes)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, K] and the features [B, width] below them."""
        features = self.body(maps).mean(dim=(2, 3))
        return self.head(features), features


def _separable(channels: int, goal: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, goal, 1, bias=False),
        nn.BatchNorm2d(goal),
        nn.ReLU(),
    ]
