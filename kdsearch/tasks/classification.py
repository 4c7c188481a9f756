"""Image classification: one label an image, judged by top-1 accuracy in [0, 1]."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.errors import DataError


def task_loss(logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy. logits: [B, K]; target: [B] class indices."""
    return F.cross_entropy(logits, target, label_smoothing=label_smoothing)


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
