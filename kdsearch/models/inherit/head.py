"""Fit a fresh linear head on the frozen features of an inherited network, before any step.

One pass over the images without augmentation, then L-BFGS on the task's own loss (Liu and Nocedal,
1989): multinomial logistic regression where the loss is cross-entropy. The decay of the weights is
chosen on every fifth image, and the head is then fitted on all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from kdsearch.models.features import head_module
from kdsearch.models.model import Model
from kdsearch.models.probe import evaluating

_log = logging.getLogger(__name__)
MAX_IMAGES = 20_000  # 100 MB of 1,280 features; more images move a linear head little
DECAYS = (1.0, 0.3, 0.1, 0.03)
_HELD_OUT = 5
_ROUNDS = 50
_CLOSE = 1e-3

Loss = Callable[[Tensor, Tensor], Tensor]  # of logits [N, K] and labels [N, ...]


def has_fresh_head(model: Model) -> bool:
    """Return whether a model inherited its body but not the layer that makes its answer."""
    head = head_module(model.network)
    names = {id(part): name for name, part in model.network.named_modules()}
    return bool(model.inherited) and (
        head is None or f"{names[id(head)]}.weight" not in model.inherited
    )


def fit_head(
    model: Model,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Loss,
) -> bool:
    """Fit the head of a model in place; return whether it has one that can be fitted.

    batches: (images uint8 [B, C, H, W], labels [B, ...]) on the model's device. loss: the mean over
    images. A head that is not one linear layer from the embedding to the answer stays as it is.
    """
    head = head_module(model.network)
    found = None if head is None else _features(model, head, batches)
    if head is None or found is None:
        _log.info("%s: its head is not one linear layer, so it is not fitted first", model.name)
        return False
    weight, bias = best_linear(*found, loss, outputs=head.weight.shape[0])
    with torch.no_grad():
        head.weight.copy_(weight.view_as(head.weight))
        if head.bias is not None:
            head.bias.copy_(bias)
    return True


@torch.no_grad()
def _features(
    model: Model, head: nn.Linear | nn.Conv2d, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor] | None:
    """Return embeddings [N, D] and labels; None where the answer is not the head's of these."""
    rows, labels = [], []
    with evaluating(model):
        for images, truth in batches:
            outputs = model.features(images, need=frozenset({"embedding"}))
            embedding = outputs.embedding.float()
            answer = nn.functional.linear(embedding, head.weight.flatten(1), head.bias)
            if answer.shape != outputs.logits.shape or not torch.allclose(
                answer, outputs.logits.float(), atol=_CLOSE, rtol=_CLOSE
            ):
                return None
            rows.append(embedding)
            labels.append(truth)
    return torch.cat(rows), torch.cat(labels)


def best_linear(
    features: Tensor, labels: Tensor, loss: Loss, *, outputs: int, decays: Sequence[float] = DECAYS
) -> tuple[Tensor, Tensor]:
    """Return weight [K, D] and bias [K] of a linear layer with the least loss.

    features: [N, D], brought to mean 0 and spread 1 inside, so that one decay suits any network.
    """
    mean, spread = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    scaled = (features - mean) / spread
    held_out = torch.arange(len(scaled), device=scaled.device) % _HELD_OUT == 0
    scores = []
    start = None
    for decay in decays:
        start = _fit(scaled[~held_out], labels[~held_out], loss, outputs, decay, start)
        scores.append(float(loss(_answers(scaled[held_out], start), labels[held_out])))
    best = decays[scores.index(min(scores))]
    table = _fit(scaled, labels, loss, outputs, best, start)
    weight = table[:, :-1] / spread
    return weight, table[:, -1] - weight @ mean


def _answers(features: Tensor, table: Tensor) -> Tensor:
    return nn.functional.linear(features, table[:, :-1], table[:, -1])


def _fit(
    features: Tensor,
    labels: Tensor,
    loss: Loss,
    outputs: int,
    decay: float,
    start: Tensor | None,
) -> Tensor:
    """Return the layer [K, D + 1] with the least loss + decay / 2 * |weight|^2; bias is last."""
    shape = (outputs, features.shape[1] + 1)
    table = (features.new_zeros(shape) if start is None else start.clone()).requires_grad_()
    search = torch.optim.LBFGS([table], max_iter=_ROUNDS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        with torch.enable_grad():
            value = loss(_answers(features, table), labels)
            value = value + decay / 2 * table[:, :-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(closure)  # type: ignore[no-untyped-call]
    return table.detach()
