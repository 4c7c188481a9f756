"""What the formulas share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Maps: TypeAlias = Sequence[Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a script knows beside the batch: training samples, the teacher's linear head."""

    samples: int
    head: tuple[Tensor, Tensor | None]


def total(losses: Iterable[Tensor]) -> Tensor:
    """Return the sum of several scalars."""
    return torch.stack(list(losses)).sum()
