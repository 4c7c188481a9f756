"""Loss balancing: weights learned by uncertainty, or set by gradient norms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from kdsearch.errors import SpecError
from kdsearch.models.features import source_of

_LIMIT = 3.0
_EVERY = 10
_DECAY = 0.9
_MAX_SCALE = 1e4


class Uncertainty(nn.Module):
    """Learned weights (Kendall et al., CVPR 2018, 1705.07115).

    loss = sum of exp(-s) * loss_i + s / 2, with one s for the task and each term; all start at 0.
    The losses include the recipe's weights; one with weight 0 now is left out of both sums.
    s stays within -3 and 3: where a loss nears 0 or is negative, the sum has no lower bound.
    """

    def __init__(self, losses: int) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.zeros(losses))

    @property
    def log_variances(self) -> Tensor:
        """Return s, one for each loss."""
        return _LIMIT * (self.raw / _LIMIT).tanh()

    def forward(self, losses: Sequence[Tensor | None]) -> Tensor:
        """Return the balanced sum of the weighted losses, the task first; None is left out."""
        summed = [
            (-s).exp() * loss + s / 2
            for loss, s in zip(losses, self.log_variances.unbind(), strict=True)
            if loss is not None
        ]
        return torch.stack(summed).sum()


class GradNorm(nn.Module):
    """Scales that bring every term's gradient to the norm of the task's.

    The one training rate of GradNorm (Chen et al., ICML 2018, 1711.02257) at alpha = 0, in closed
    form: norms at the student's shallowest stage, every tenth step, averaged in the logarithm with
    decay 0.9. A scale stays within 1e-4 and 1e4.
    """

    log_scales: Tensor

    def __init__(self, terms: int) -> None:
        super().__init__()
        self.register_buffer("log_scales", torch.full((terms,), math.nan))  # not measured yet
        self.count = 0

    def forward(self, task: Tensor, terms: list[Tensor], shared: Tensor) -> Tensor:
        """Return the scales [terms]. shared: a tensor of the student that all losses depend on.

        Raises SpecError when the task does not depend on it.
        """
        if self.training and shared.requires_grad:
            if self.count % _EVERY == 0:
                self._measure(task, terms, shared)
            self.count += 1
        return self.log_scales.nan_to_num(0.0).exp()

    def _measure(self, task: Tensor, terms: list[Tensor], shared: Tensor) -> None:
        """Update the scales of the active terms; a term outside its window keeps its scale."""
        source = source_of(shared)
        norms = torch.stack([_norm(loss, source) for loss in (task, *terms)])
        if self.count == 0 and not norms[0]:
            raise SpecError(
                "method.balance: 'gradnorm' measures gradients at the student's shallowest stage, "
                "which its logits do not read; use uncertainty or fixed"
            )
        limit = math.log(_MAX_SCALE)
        ratios = (norms[0].clamp(min=1e-12) / norms[1:].clamp(min=1e-12)).log()
        ratios = ratios.clamp(-limit, limit)
        before = torch.where(self.log_scales.isnan(), ratios, self.log_scales)
        moved = before.lerp(ratios, 1 - _DECAY)
        self.log_scales.copy_(torch.where(norms[1:] > 0, moved, self.log_scales))


def _norm(loss: Tensor, shared: Tensor) -> Tensor:
    found: Tensor | None = None
    if loss.requires_grad:
        (found,) = torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True)
    norm: Tensor = shared.new_zeros(()) if found is None else vector_norm(found.float())
    return norm
