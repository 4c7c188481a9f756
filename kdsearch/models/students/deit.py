"""Transformers with a distillation token (Touvron et al., ICML 2021, arXiv:2012.12877).

The class token's head learns the labels, the distillation token's head the teacher's logits; at
inference, and wherever one answer is needed, the logits are the mean of the two.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from kdsearch.models.features import Outputs
from kdsearch.models.students._vit_parts import Transformer


class DeiT(Transformer):
    """A transformer with two tokens of its own, two heads and no pooling."""

    family: ClassVar[str] = "deit"
    prefix_tokens: ClassVar[int] = 2

    def make_heads(self, num_classes: int) -> None:
        """Set one linear layer for each token."""
        self.class_head = nn.Linear(self.width, num_classes)
        self.distillation_head = nn.Linear(self.width, num_classes)

    def features(self, x: Tensor) -> Outputs:
        """Return the outputs of a ViT and both heads' logits; the embedding is the tokens' mean."""
        read = self.read(x)
        tokens = read.tokens[:, 0], read.tokens[:, 1]
        heads = self.class_head(tokens[0]), self.distillation_head(tokens[1])
        return Outputs(
            (heads[0] + heads[1]) / 2,
            (tokens[0] + tokens[1]) / 2,
            read.stages,
            read.attention,
            heads,
        )
