"""Vision transformers (Dosovitskiy et al., ICLR 2021, arXiv:2010.11929) for short trainings.

Average pooling instead of a class token (Beyer et al., 2022, arXiv:2205.01580).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from kdsearch.models.features import Outputs
from kdsearch.models.students._vit_parts import Transformer


class ViT(Transformer):
    """A transformer whose head reads the average of the patches' tokens."""

    family: ClassVar[str] = "vit"

    def make_heads(self, num_classes: int) -> None:
        """Set one linear layer."""
        self.head = nn.Linear(self.width, num_classes)

    def features(self, x: Tensor) -> Outputs:
        """Return logits, embedding, and the tokens and attention of four blocks on their grid."""
        read = self.read(x)
        embedding = read.tokens.mean(dim=1)
        return Outputs(self.head(embedding), embedding, read.stages, read.attention)
