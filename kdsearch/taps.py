"""What a network says on one batch: logits, embedding and stages, whatever its kind.

Every stage is a map [B, C, H, W]; tokens are laid back on their grid without the prefix tokens
(class, distillation, register), so that CNNs and transformers meet on the same ground.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Outputs:
    """logits: [B, K]. embedding: [B, D], what the head reads. stages: maps, shallow to deep."""

    logits: Tensor
    embedding: Tensor
    stages: tuple[Tensor, ...] = ()
