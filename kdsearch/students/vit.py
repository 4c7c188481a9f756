"""Vision transformers (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929) for short trainings.

Fixed sine-cosine positions and average pooling instead of learned positions and a class token
(Beyer et al., 2022, arXiv:2205.01580), and a convolution before the patches (Xiao et al., NeurIPS
2021, arXiv:2106.14881), which took the 8 px digits from .70 to .93 in 6 epochs of AdamW. BatchNorm
on the patches lets SGD at 0.1 train it too: .78 without, .91 with.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt, log
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.errors import SpecError
from kdsearch.space import Float, Int
from kdsearch.students.base import LARGE, Knob, Student, accept, conv_norm, scaled
from kdsearch.taps import TRANSFORMER_STAGES, Outputs, evenly_spaced, tokens_to_map

EMBEDDING = 192
HEAD = 32
EXPANSION = 4
MAX_GRID = 32


class ViT(Student):
    """`width` multiplies the embedding of 192, `depth` counts blocks.

    The patch divides the image: the one whose grid is nearest to 4x4 below 16 px, 8x8 below 64 px,
    else 14x14.
    """

    knobs: ClassVar[Mapping[str, Knob]] = {
        "width": Float(low=0.25, high=1.5, log=True),
        "depth": Int(low=2, high=12),
    }
    positions: Tensor

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        resolution: int,
        width: float = 1.0,
        depth: int = 6,
    ) -> None:
        accept(
            "vit",
            in_channels=in_channels,
            num_classes=num_classes,
            resolution=resolution,
            width=(width, Float(low=0.01, high=32)),
            depth=(depth, Int(low=1, high=512)),
        )
        super().__init__()
        dim = scaled(EMBEDDING, width, multiple=HEAD)
        patch = _patch(resolution)
        self.patches = _patches(in_channels, dim, patch)
        self.register_buffer("positions", _positions(resolution // patch, dim), persistent=False)
        self.blocks = nn.ModuleList(_Block(dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def features(self, x: Tensor) -> Outputs:
        """Return logits, embedding and four evenly spaced blocks' tokens on their grid."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        tokens = []
        for block in self.blocks:
            x = block(x)
            tokens.append(x)
        embedding = self.norm(x).mean(dim=1)
        chosen = evenly_spaced(len(tokens), TRANSFORMER_STAGES)
        return Outputs(
            self.head(embedding), embedding, tuple(tokens_to_map(tokens[i]) for i in chosen)
        )


def _patch(resolution: int) -> int:
    """Return the divisor of the resolution whose grid is nearest to the wanted one.

    Raises SpecError for sides like 97 px, which only leave patches of one pixel or all of them.
    """
    wanted = 14 if resolution >= LARGE else 8 if resolution >= LARGE // 4 else 4
    sides = [side for side in range(2, MAX_GRID + 1) if resolution % side == 0]
    if not sides:
        raise SpecError(
            f"student vit: no patch divides {resolution} px into a grid of 2 to {MAX_GRID} a side; "
            f"a multiple of 8 px does, such as {round(resolution / 8) * 8}"
        )
    return resolution // min(sides, key=lambda side: abs(log(side / wanted)))


def _patches(in_channels: int, dim: int, patch: int) -> nn.Sequential:
    """Return an overlapping convolution, then one over what is left of the patch, normalised."""
    stride = max(step for step in range(1, isqrt(patch) + 1) if patch % step == 0)
    return nn.Sequential(
        *conv_norm(in_channels, dim // 2, stride + 1 + stride % 2, stride=stride),
        nn.ReLU(inplace=True),
        nn.Conv2d(dim // 2, dim, patch // stride, stride=patch // stride, bias=False),
        nn.BatchNorm2d(dim),
    )


def _positions(side: int, dim: int) -> Tensor:
    """Return [1, side * side, dim]: sines and cosines of row and column at dim / 4 wavelengths."""
    frequency = 10_000.0 ** -torch.linspace(0, 1, dim // 4)
    angle = torch.arange(side)[:, None] * frequency
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)
    rows = wave[:, None].expand(side, side, -1)
    columns = wave[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=2).reshape(1, side * side, dim)


class _Block(nn.Module):
    """Attention over the tokens, then a two-layer perceptron, each normalised at its entrance."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.projection = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, EXPANSION * dim),
            nn.GELU(),
            nn.Linear(EXPANSION * dim, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of the same shape [B, N, D]."""
        batch, count, dim = x.shape
        qkv = self.qkv(self.attention_norm(x)).reshape(batch, count, 3, dim // HEAD, HEAD)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        heard = F.scaled_dot_product_attention(query, key, value)
        x = x + self.projection(heard.transpose(1, 2).reshape(batch, count, dim))
        out: Tensor = x + self.mlp(x)
        return out
