"""The optimisers of a training, and how their learning rate moves.

Gains, biases and other 1-D weights are never decayed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from kdsearch.spec import TrainSpec


class Optimizers:
    """One or two optimisers under one schedule: a linear rise, then half a cosine to 0.

    steps: of the whole training. The model's weights are `spec.optimizer`'s. Muon (Jordan et al.,
    2024; its rate scaled to the length of AdamW's steps after Liu et al., 2025, 2502.16982) takes
    the matrices and convolutions between the first and the last layer; it has no use for the
    others, depthwise convolutions and adapters, which are AdamW's at the same rate.
    """

    def __init__(self, model: nn.Module, adapters: nn.Module, spec: TrainSpec, steps: int) -> None:
        weights = [p for p in model.parameters() if p.requires_grad]
        others = [p for p in adapters.parameters() if p.requires_grad]
        self.weights = [*weights, *others]
        matrices = _matrices(weights) if spec.optimizer == "muon" else []
        taken = set(map(id, matrices))
        rest = [p for p in self.weights if id(p) not in taken]
        self.parts: list[torch.optim.Optimizer] = [_plain(rest, spec)]
        if matrices:
            self.parts.append(_Muon(matrices, spec))
        factor = _warm_cosine(steps, spec.warmup)
        self._schedules = [LambdaLR(part, factor) for part in self.parts]
        self._clip = spec.clip

    @property
    def lr(self) -> float:
        """Return the rate of the next step."""
        return float(self.parts[0].param_groups[0]["lr"])

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in self.weights:
            weight.grad = None

    def step(self) -> None:
        """Clip the gradients, move the weights, then the rate."""
        if self._clip:
            nn.utils.clip_grad_norm_(self.weights, self._clip)
        for part, schedule in zip(self.parts, self._schedules, strict=True):
            part.step()
            schedule.step()


class _Muon(torch.optim.Muon):
    """Muon on weights of any shape: each is a matrix [out, rest], a view of the same memory."""

    def __init__(self, weights: Sequence[nn.Parameter], spec: TrainSpec) -> None:
        self._weights = weights
        self._matrices = [nn.Parameter(w.detach().view(len(w), -1)) for w in weights]
        super().__init__(
            self._matrices,
            lr=spec.lr,
            weight_decay=spec.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the weights along their own gradients."""
        for matrix, weight in zip(self._matrices, self._weights, strict=True):
            matrix.grad = None if weight.grad is None else weight.grad.reshape(matrix.shape)
        super().step()  # type: ignore[no-untyped-call]


def _matrices(weights: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Return what Muon takes: neither the first nor the last layer, nor a depthwise one."""
    inner = [weight for weight in weights if weight.ndim > 1][1:-1]
    return [weight for weight in inner if weight.shape[1] > 1]


def _plain(weights: Sequence[nn.Parameter], spec: TrainSpec) -> torch.optim.Optimizer:
    groups: list[dict[str, object]] = [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if spec.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=spec.lr)


def _warm_cosine(steps: int, warmup: float) -> Callable[[int], float]:
    """Return the factor of the learning rate at a step."""
    rise = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return factor
