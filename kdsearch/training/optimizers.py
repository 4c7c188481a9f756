"""The optimisers of a training, and how their learning rate moves.

Gains, biases and other 1-D weights are never decayed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from kdsearch.models.features import bare
from kdsearch.models.model import Model
from kdsearch.models.probe import LAYERS, first_and_last
from kdsearch.train_spec import TrainSpec

_DECAYED, _PLAIN = True, False  # the two groups of each rate


class Optimizers:
    """One or two optimisers at one rate, a 0-d tensor that the caller fills before a step.

    steps: of the whole training; `rate_at` rises linearly, then falls as half a cosine to 0. The
    model's weights are `spec.optimizer`'s. Muon (Jordan et al., 2024; its rate scaled to the
    length of AdamW's steps after Liu et al., 2025, 2502.16982) takes the matrices of Linear layers,
    convolutions and attention between the layer that reads the image and the heads. AdamW takes
    those, depthwise convolutions, tokens and adapters, at the same rate. All use fused kernels,
    which read the rate from a GPU, and on one CPU thread take .20 and .41 ms where loops take .73
    and 2.9 (SGD and AdamW on 100 small tensors).

    factors: of the rate of single weights, 1 where absent; each has a tensor of its own, which a
    step writes on the device.
    """

    def __init__(
        self,
        model: Model,
        adapters: nn.Module,
        spec: TrainSpec,
        steps: int,
        factors: Mapping[nn.Parameter, float] | None = None,
    ) -> None:
        weights = [p for p in model.parameters() if p.requires_grad]
        others = [p for p in adapters.parameters() if p.requires_grad]
        self.weights = [*weights, *others]
        self.rate = torch.tensor(spec.lr, device=self.weights[0].device)
        of_each = [(factors or {}).get(weight, 1.0) for weight in self.weights]
        by_factor = {
            share: [w for w, own in zip(self.weights, of_each, strict=True) if own == share]
            for share in dict.fromkeys(of_each)
        }
        self._rates = {share: self.rate if share == 1 else self.rate * share for share in by_factor}
        matrices = _matrices(model) if spec.optimizer == "muon" else []
        taken = set(map(id, matrices))
        rest = [[p for p in group if id(p) not in taken] for group in by_factor.values()]
        self.parts: list[torch.optim.Optimizer] = [_plain(rest, spec)]
        self.share_rate()
        for share, group in by_factor.items():
            if own := [p for p in group if id(p) in taken]:
                self.parts.append(_Muon(own, self._rates[share], spec.weight_decay))
        factor = _warm_cosine(steps, spec.warmup)
        self.rate_at: Callable[[int], float] = lambda step: spec.lr * factor(step)
        self._clip = spec.clip

    def share_rate(self) -> None:
        """Make the rates' tensors those of the plain optimiser, which may have loaded others."""
        rates = [rate for rate in self._rates.values() for _ in (_DECAYED, _PLAIN)]
        for group, rate in zip(self.parts[0].param_groups, rates, strict=True):
            group["lr"] = rate

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for weight in self.weights:
            weight.grad = None

    def step(self) -> None:
        """Clip the gradients and move the weights."""
        for factor, rate in self._rates.items():
            if rate is not self.rate:
                torch.mul(self.rate, factor, out=rate)
        if self._clip:
            nn.utils.clip_grad_norm_(self.weights, self._clip)
        for part in self.parts:
            part.step()


class _Muon(torch.optim.Muon):
    """Muon on weights of any shape: each has a matrix [out, rest], which makes its step from 0.

    So the rate, and the decay that it scales, may be a tensor on the weights' device, where torch's
    own step reads a number.
    """

    def __init__(self, weights: Sequence[nn.Parameter], rate: Tensor, weight_decay: float) -> None:
        self._weights = weights
        self._rate = rate
        self._decay = weight_decay
        self._steps = [nn.Parameter(torch.zeros_like(w).reshape(len(w), -1)) for w in weights]
        super().__init__(self._steps, lr=1.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the weights along their own gradients."""
        for step, weight in zip(self._steps, self._weights, strict=True):
            step.grad = None if weight.grad is None else weight.grad.reshape(step.shape)
            step.zero_()
        super().step()  # type: ignore[no-untyped-call]
        for step, weight in zip(self._steps, self._weights, strict=True):
            if weight.grad is not None:
                weight.mul_(1 - self._rate * self._decay)
                weight.add_(self._rate * step.reshape(weight.shape))


def _matrices(model: Model) -> list[nn.Parameter]:
    """Return what Muon takes: matrices of layers but the first, the heads and depthwise ones."""
    network = bare(model.network)
    ends = first_and_last(network, (2, *model.preprocess.input_shape))
    known = {id(weight) for layer in ends for weight in layer.parameters()}
    layers = (layer for layer in network.modules() if isinstance(layer, LAYERS))
    matrices = []
    for weight in (weight for layer in layers for weight in layer.parameters(recurse=False)):
        is_matrix = weight.ndim > 1 and weight.shape[1] > 1
        if is_matrix and weight.requires_grad and id(weight) not in known:
            known.add(id(weight))
            matrices.append(weight)
    return matrices


def _plain(weights: Sequence[Sequence[nn.Parameter]], spec: TrainSpec) -> torch.optim.Optimizer:
    """Return SGD or AdamW with two groups a rate: weights that decay, and those that do not."""
    decays = {_DECAYED: spec.weight_decay, _PLAIN: 0.0}
    groups: list[dict[str, object]] = [
        {"params": [p for p in group if (p.ndim > 1) == is_decayed], "weight_decay": decay}
        for group in weights
        for is_decayed, decay in decays.items()
    ]
    if spec.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=0.9, nesterov=True, fused=True)
    # A fused step is always capturable; torch captures only one that is declared so.
    return torch.optim.AdamW(groups, lr=spec.lr, fused=True, capturable=True)


def _warm_cosine(steps: int, warmup: float) -> Callable[[int], float]:
    """Return the factor of the learning rate at a step."""
    rise = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))

    return factor
