"""A pyramid of features for segmentation (Kirillov et al., CVPR 2019, arXiv:1901.02446)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kdsearch.models.heads.base import Head, at_stride, conv_relu, require, resized, separable

_STRIDE = 4  # of the logits


class FPN(Head):
    """Each map by a 1x1 convolution, added from deep to shallow, then 3x3 and logits at stride 4.

    The sums replace the branch that the paper has for each level. channels: of the pyramid.
    """

    def __init__(
        self, maps: Sequence[int], strides: Sequence[int], num_classes: int, *, channels: int = 64
    ) -> None:
        super().__init__()
        require("fpn", channels)
        self.first = at_stride(strides, _STRIDE)
        self.lateral = nn.ModuleList(conv_relu(count, channels) for count in maps[self.first :])
        self.smooth = separable(channels)
        self.classify = nn.Conv2d(channels, num_classes, kernel_size=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the logits at stride 4."""
        levels = zip(self.lateral, maps[self.first :], strict=True)
        *finer, x = (layer(found) for layer, found in levels)
        for level in reversed(finer):
            x = level + resized(x, level.shape[2:])
        logits: Tensor = self.classify(self.smooth(x))
        return logits
