"""Quantisation-aware training (QAT): fine-tune a student with the rounding of its int8 file.

Weights are quantised per output channel, symmetric; inputs of layers per tensor, within the range
seen on training images. Gradients pass the rounding unchanged (straight-through; Jacob et al.,
CVPR 2018, arXiv:1712.05877). Sums of residual branches are not quantised here, unlike in the file.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from kdsearch.models.model import Model
from kdsearch.spec import Candidate
from kdsearch.training.step import Session
from kdsearch.training.trainer import train
from kdsearch.trials.trial import TrialContext, build_distiller

EPOCHS = 5
_LR_FACTOR = 0.1  # of the learning rate of the student's own training
_LAYERS = (nn.Conv2d, nn.Linear)


def fine_tune(
    student: Model,
    candidate: Candidate,
    context: TrialContext,
    images: Iterable[Tensor],
) -> Model:
    """Return a frozen copy of `student`, fine-tuned for EPOCHS with quantised layers.

    images: batches of normalised training images [N, C, H, W], for the input ranges.
    """
    tuned = copy.deepcopy(student).requires_grad_(True)
    recipe = candidate.train
    recipe = replace(recipe, epochs=EPOCHS, lr=_LR_FACTOR * recipe.lr, warmup=0.0)
    torch.manual_seed(context.seed)
    distiller = build_distiller(candidate, tuned, context)
    with fake_quantised(tuned.network, images), context.device_lock.shared() as step_lock:
        session = Session(
            data=context.data,
            spec=recipe,
            seed=context.seed,
            view_seed=context.seed,
            device=context.device,
            teachers=context.outputs,
            train=context.train,
            val=context.val,
            step_lock=step_lock,
        )
        train(tuned, distiller, session)
    return tuned.cpu().freeze()


@contextmanager
def fake_quantised(network: nn.Module, images: Iterable[Tensor]) -> Iterator[None]:
    """Quantise weights and inputs of convolutions and linear layers to 8 bits during the block."""
    ranges = _ranges(network, images)
    handles = []
    for layer, (low, high) in ranges.items():
        parametrize.register_parametrization(layer, "weight", _QuantisedWeight())
        layer.add_module("quantised_input", _QuantisedInput(low, high))
        handles.append(layer.register_forward_pre_hook(_quantise_input))
    try:
        yield
    finally:
        for layer, handle in zip(ranges, handles, strict=True):
            handle.remove()
            del layer.quantised_input
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


@torch.no_grad()
def _ranges(network: nn.Module, images: Iterable[Tensor]) -> dict[nn.Module, tuple[float, float]]:
    """Return the least and greatest input of each layer; the range includes 0."""
    found: dict[nn.Module, tuple[float, float]] = {}

    def observe(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        low, high = found.get(layer, (0.0, 0.0))
        found[layer] = min(low, float(args[0].min())), max(high, float(args[0].max()))

    layers = [layer for layer in network.modules() if isinstance(layer, _LAYERS)]
    handles = [layer.register_forward_pre_hook(observe) for layer in layers]
    device = next(network.parameters()).device
    for batch in images:
        network(batch.to(device))
    for handle in handles:
        handle.remove()
    return found


class _QuantisedWeight(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight on 255 levels per output channel, symmetric around 0."""
        most = weight.detach().flatten(1).abs().amax(1).clamp(min=1e-12)
        scale = (most / 127).reshape(-1, *[1] * (weight.ndim - 1))
        return weight + ((weight / scale).round() * scale - weight).detach()


class _QuantisedInput(nn.Module):
    low: Tensor
    scale: Tensor

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        scale = max(high - low, 1e-12) / 255
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("low", torch.tensor(round(low / scale) * scale))

    def forward(self, x: Tensor) -> Tensor:
        """Return x clamped to the range, on 256 levels; clamped values get no gradient."""
        inside = x.clamp(self.low, self.low + 255 * self.scale)
        return inside + ((inside / self.scale).round() * self.scale - inside).detach()


def _quantise_input(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    quantiser: nn.Module = layer.quantised_input  # type: ignore[assignment]
    return (quantiser(args[0]), *args[1:])
