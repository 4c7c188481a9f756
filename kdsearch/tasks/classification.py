"""Image classification: one label an image, judged by top-1 accuracy in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.data.base import UNLABELLED
from kdsearch.errors import DataError


def task_loss(logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy over what is labelled, 0 where nothing is. logits: [B, K].

    target: class indices [B], -1 where there is no label, or the shares of the classes [B, K],
    whose row sums to less than 1 where part of a mixed image has none: such an image weighs as
    much as its row. Smoothing spreads its part of that weight evenly over the classes.
    """
    if target.ndim == 1:
        total = F.cross_entropy(
            logits,
            target,
            ignore_index=UNLABELLED,
            label_smoothing=label_smoothing,
            reduction="sum",
        )
        return total / (target != UNLABELLED).sum().clamp(min=1)
    mass = target.sum(dim=1, keepdim=True)
    smooth = (1 - label_smoothing) * target + label_smoothing / target.shape[1] * mass
    labelled = mass.sum()
    total = F.cross_entropy(logits, smooth, reduction="sum")
    return total / labelled.where(labelled > 0, 1)


def evaluate(
    predict: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]]
) -> float:
    """Return the fraction of images whose largest logit is their label's.

    predict: images to logits [B, K], in whatever mode the caller has put the model; no gradient
    is recorded. The device is waited for once, at the end. Raises DataError without images.
    """
    hits: list[Tensor] = []
    images = 0
    with torch.no_grad():
        for inputs, target in batches:
            hits.append((predict(inputs).argmax(dim=1) == target).sum())
            images += len(target)
    if not images:
        raise DataError("there are no images to evaluate on")
    return torch.stack(hits).sum().item() / images
