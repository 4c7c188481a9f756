"""The average of the weights, which is what a training evaluates and returns."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import Tensor

from kdsearch.models.model import Model


class ModelEma:
    """An exponential moving average of a model's weights and floating-point buffers.

    The decay grows as (1 + t) / (10 + t) up to its value, so that the start is soon forgotten.
    """

    def __init__(self, model: Model, decay: float) -> None:
        self.model = copy.deepcopy(model).freeze()
        self._decay = decay
        held, current = self.model.state_dict(), model.state_dict()  # these share their memory
        named = chain(model.named_parameters(), model.named_buffers())
        names = [name for name, _ in named if name in held]  # a tied weight moves once
        floating = [name for name in names if held[name].is_floating_point()]
        self._floating = [held[name] for name in floating], [current[name] for name in floating]
        others = set(names).difference(floating)
        self._others = [(held[name], current[name]) for name in others]

    def share_at(self, step: int) -> float:
        """Return how far the average moves towards the weights after step `step`, from 0."""
        return 1 - min(self._decay, (2 + step) / (11 + step))

    @torch.no_grad()
    def update(self, share: Tensor) -> None:
        """Move towards the weights by a share of the way, a 0-d tensor on their device."""
        held, current = self._floating
        torch._foreach_lerp_(held, current, [share] * len(held))
        for old, new in self._others:
            old.copy_(new)
