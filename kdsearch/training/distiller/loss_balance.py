"""Weights that follow the training: by uncertainty, or by the length of the gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdsearch.errors import SpecError
from kdsearch.models.features import source_of

_LIMIT = 3.0
_EVERY = 10
_MEMORY = 0.9
_FARTHEST = 1e4


class Uncertainty(nn.Module):
    """Learned weights (Kendall et al., CVPR 2018, 1705.07115).

    loss = sum of exp(-s) * part + s / 2, with one s for the task and each term; all start at 0.
    The parts come with the recipe's weights; one that weighs nothing now is left out of both sums.
    s stays within -3 and 3: where a part nears 0, or goes below, the sum has no lower bound.
    """

    def __init__(self, parts: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(parts))

    @property
    def log_variances(self) -> Tensor:
        """Return s [parts]."""
        return _LIMIT * (self.raw / _LIMIT).tanh()

    def forward(self, parts: Sequence[Tensor | None]) -> Tensor:
        """Return the balanced sum of the weighted parts, the task first; None is left out."""
        summed = [
            (-s).exp() * part + s / 2
            for part, s in zip(parts, self.log_variances.unbind(), strict=True)
            if part is not None
        ]
        return torch.stack(summed).sum()


class GradNorm(nn.Module):
    """Scales that bring every term's gradient to the length of the task's.

    The one training rate of GradNorm (Chen et al., ICML 2018, 1711.02257) at alpha = 0, in closed
    form: lengths at the student's shallowest stage, every tenth step, averaged with a memory of
    0.9 in the logarithm. A scale stays within 1e-4 and 1e4.
    """

    log_scales: Tensor

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.register_buffer("log_scales", torch.full((terms,), math.nan))  # not measured yet
        self.count = 0

    def forward(self, task: Tensor, terms: list[Tensor], shared: Tensor) -> Tensor:
        """Return the scales [terms]. shared: a tensor of the student that all parts come from.

        Raises SpecError when the task does not come from it.
        """
        if self.training and shared.requires_grad:
            if self.count % _EVERY == 0:
                self._measure(task, terms, shared)
            self.count += 1
        return self.log_scales.nan_to_num(0.0).exp()

    def _measure(self, task: Tensor, terms: list[Tensor], shared: Tensor) -> None:
        """Take the lengths of what is heard now; a term outside of its window keeps its scale."""
        source = source_of(shared)
        lengths = torch.stack([_length(part, source) for part in (task, *terms)])
        if self.count == 0 and not lengths[0]:
            raise SpecError(
                "method.balance: 'gradnorm' measures gradients at the student's shallowest stage, "
                "which its logits do not read; use uncertainty or fixed"
            )
        limit = math.log(_FARTHEST)
        seen = (lengths[0].clamp(min=1e-12) / lengths[1:].clamp(min=1e-12)).log()
        seen = seen.clamp(-limit, limit)
        before = torch.where(self.log_scales.isnan(), seen, self.log_scales)
        moved = before.lerp(seen, 1 - _MEMORY)
        self.log_scales.copy_(torch.where(lengths[1:] > 0, moved, self.log_scales))


def _length(part: Tensor, shared: Tensor) -> Tensor:
    if not part.requires_grad:
        return shared.new_zeros(())
    (found,) = torch.autograd.grad(part, shared, retain_graph=True, allow_unused=True)
    if found is None:
        return shared.new_zeros(())
    length: Tensor = torch.linalg.vector_norm(found.float())
    return length
