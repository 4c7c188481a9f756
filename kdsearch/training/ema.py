"""The average of the weights, which a training evaluates; it returns that of one epoch."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import chain
from math import inf
from typing import Any

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

    @torch.no_grad()
    def restart(self) -> None:
        """Take the model's weights as they are now."""
        held, current = self._floating
        torch._foreach_copy_(held, current)

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


class Kept:
    """The averaged weights that a training returns: those of its last epoch, or of its best.

    value: their validation metric. Of equal epochs the later one is kept.
    """

    def __init__(self, average: Model, *, is_best: bool) -> None:
        self.value = -inf
        self.is_best = is_best
        self._average = average
        self._weights: dict[str, Tensor] = {}

    def offer(self, value: float) -> float:
        """Keep the average as it is now, unless an earlier one is better; return the kept value."""
        if self.is_best and value < self.value:
            return self.value
        self.value = value
        if self.is_best:
            now = self._average.state_dict()
            self._weights = {name: tensor.clone() for name, tensor in now.items()}
        return value

    def weights(self) -> Mapping[str, Tensor]:
        """Return the weights that are kept."""
        return self._weights or self._average.state_dict()

    def state(self) -> dict[str, object]:
        """Return the value and the weights of an earlier epoch."""
        return {"value": self.value, "weights": self._weights}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Load a state that `state` returned."""
        device = next(self._average.parameters()).device
        self.value = state["value"]
        self._weights = {name: tensor.to(device) for name, tensor in state["weights"].items()}
