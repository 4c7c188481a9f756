"""The head of MobileNetV3 (Howard et al., ICCV 2019, arXiv:1905.02244, section 6.4)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from kdsearch.models.heads.base import Head, at_stride, conv_relu, require, resized

_STRIDE = 8  # of the logits


class LRASPP(Head):
    """Logits of the deepest map, gated by its mean, plus logits of the map at stride 8.

    The cheapest head: 1x1 convolutions alone. channels: of the gated features.
    """

    def __init__(
        self, maps: Sequence[int], strides: Sequence[int], num_classes: int, *, channels: int = 64
    ) -> None:
        super().__init__()
        require("lraspp", channels)
        self.fine = at_stride(strides, _STRIDE)
        self.deep = conv_relu(maps[-1], channels)
        self.gate = nn.Conv2d(maps[-1], channels, kernel_size=1, bias=False)
        self.of_deep = nn.Conv2d(channels, num_classes, kernel_size=1)
        self.of_fine = nn.Conv2d(maps[self.fine], num_classes, kernel_size=1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the logits at stride 8."""
        gate = self.gate(maps[-1].mean(dim=(2, 3), keepdim=True)).sigmoid()
        fine = maps[self.fine]
        deep = self.of_deep(self.deep(maps[-1]) * gate)
        logits: Tensor = resized(deep, fine.shape[2:]) + self.of_fine(fine)
        return logits
