"""Vision transformers (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929) for short trainings.

Average pooling instead of a class token (Beyer et al., 2022, arXiv:2205.01580).
"""

from __future__ import annotations

from torch import Tensor, nn

from kdsearch.students._vit_parts import Transformer
from kdsearch.taps import Outputs


class ViT(Transformer):
    """A transformer whose head reads the average of the patches' tokens."""

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        resolution: int,
        width: float = 1.0,
        depth: int = 6,
    ) -> None:
        super().__init__(
            "vit",
            in_channels=in_channels,
            num_classes=num_classes,
            resolution=resolution,
            width=width,
            depth=depth,
        )
        self.head = nn.Linear(self.width, num_classes)

    def features(self, x: Tensor) -> Outputs:
        """Return logits, embedding, and the tokens and attention of four blocks on their grid."""
        told = self.read(x)
        embedding = told.tokens.mean(dim=1)
        return Outputs(self.head(embedding), embedding, told.stages, told.attention)
