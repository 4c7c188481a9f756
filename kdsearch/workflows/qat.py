"""Train a student for 8 bits: its layers round as the int8 file will, under the same teacher.

Weights are rounded per output channel, symmetric; what a layer reads per tensor, between the ends
of what training images gave. Gradients pass the rounding as they are (straight-through; Jacob et
al., CVPR 2018, arXiv:1712.05877). Sums of residual branches, which the file rounds too, are not.
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
from kdsearch.training.trainer import OnEpoch, train
from kdsearch.trials.trial import TrialContext, build_distiller

EPOCHS = 5
_SLOWER = 0.1  # the rate begins at a tenth of the training's own
_LAYERS = (nn.Conv2d, nn.Linear)


def fine_tune(
    student: Model,
    candidate: Candidate,
    context: TrialContext,
    images: Iterable[Tensor],
    *,
    on_epoch: OnEpoch | None = None,
) -> Model:
    """Return a copy of `student`, trained on for a few epochs while its layers round to 8 bits.

    images: batches of normalised training images, which the ranges are taken from.
    """
    tuned = copy.deepcopy(student).requires_grad_(True)
    recipe = candidate.train
    recipe = replace(recipe, epochs=EPOCHS, lr=_SLOWER * recipe.lr, warmup=0.0)
    torch.manual_seed(context.seed)
    distiller = build_distiller(candidate, tuned, context)
    with fake_quantised(tuned.network, images), context.device_lock.shared() as turn:
        session = Session(
            data=context.data,
            spec=recipe,
            seed=context.seed,
            view_seed=context.seed,
            device=context.device,
            teachers=context.outputs,
            train=context.train,
            val=context.val,
            turn=turn,
        )
        train(tuned, distiller, session, on_epoch=on_epoch)
    return tuned.cpu().freeze()


@contextmanager
def fake_quantised(network: nn.Module, images: Iterable[Tensor]) -> Iterator[None]:
    """Let the convolutions and linear layers of a network round to 8 bits meanwhile."""
    ranges = _ranges(network, images)
    handles = []
    for layer, (low, high) in ranges.items():
        parametrize.register_parametrization(layer, "weight", _RoundedWeight())
        layer.add_module("rounded_input", _RoundedInput(low, high))
        handles.append(layer.register_forward_pre_hook(_round_input))
    try:
        yield
    finally:
        for layer, handle in zip(ranges, handles, strict=True):
            handle.remove()
            del layer.rounded_input
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)


@torch.no_grad()
def _ranges(network: nn.Module, images: Iterable[Tensor]) -> dict[nn.Module, tuple[float, float]]:
    """Return the ends of what each layer reads; 0 is always between them."""
    found: dict[nn.Module, tuple[float, float]] = {}

    def look(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        low, high = found.get(layer, (0.0, 0.0))
        found[layer] = min(low, float(args[0].min())), max(high, float(args[0].max()))

    layers = [layer for layer in network.modules() if isinstance(layer, _LAYERS)]
    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    device = next(network.parameters()).device
    for batch in images:
        network(batch.to(device))
    for handle in handles:
        handle.remove()
    return found


class _RoundedWeight(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight on 255 levels a channel, of which 0 is one."""
        most = weight.detach().flatten(1).abs().amax(1).clamp(min=1e-12)
        scale = (most / 127).reshape(-1, *[1] * (weight.ndim - 1))
        return weight + ((weight / scale).round() * scale - weight).detach()


class _RoundedInput(nn.Module):
    low: Tensor
    scale: Tensor

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        scale = max(high - low, 1e-12) / 255
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("low", torch.tensor(round(low / scale) * scale))

    def forward(self, x: Tensor) -> Tensor:
        """Return what lies between the ends on 256 levels; the gradient of the rest is 0."""
        inside = x.clamp(self.low, self.low + 255 * self.scale)
        return inside + ((inside / self.scale).round() * self.scale - inside).detach()


def _round_input(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    rounding: nn.Module = layer.rounded_input  # type: ignore[assignment]
    return (rounding(args[0]), *args[1:])
