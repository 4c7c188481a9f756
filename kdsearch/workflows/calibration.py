"""Calibration of a teacher: confidence against accuracy, and the best temperature."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

BINS = 15
_COLDEST, _HOTTEST = 0.01, 100.0
_HALVINGS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """Accuracy and confidence of a teacher on labelled images without augmentation.

    confidence: mean of the largest probabilities. nll: nats per image. ece: expected calibration
    error over 15 equal bins of confidence (Guo et al., ICML 2017, 1706.04599). temperature: divisor
    of the logits with the least nll; None where there is none, as when all predictions are right.
    """

    images: int
    accuracy: float
    confidence: float
    nll: float
    ece: float
    temperature: float | None


def measure_calibration(
    logits: Tensor, labels: Tensor, classes: tuple[int, ...] | None = None
) -> Calibration:
    """Return accuracy, confidence and calibration errors of logits [N, K] for labels [N].

    classes: of which the logits are; then of the images of these alone. None: all classes.
    """
    if classes is not None:
        own = labels[:, None] == torch.tensor(classes)
        is_known = own.any(dim=1)
        logits, labels = logits[is_known], own.int().argmax(dim=1)[is_known]
    logits = logits.double()
    confidence, predicted = logits.softmax(dim=1).max(dim=1)
    right = (predicted == labels).double()
    place = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    excess = torch.zeros(BINS, dtype=torch.float64).index_add_(0, place, right - confidence)
    return Calibration(
        images=len(labels),
        accuracy=float(right.mean()),
        confidence=float(confidence.mean()),
        nll=float(F.cross_entropy(logits, labels)),
        ece=float(excess.abs().sum()) / len(labels),
        temperature=best_temperature(logits, labels),
    )


def best_temperature(logits: Tensor, labels: Tensor) -> float | None:
    """Return the temperature in [0.01, 100] with the least negative log-likelihood, or None.

    The likelihood is concave in b = 1 / T, so its slope, the mean of z_y - E_softmax(b z)[z], has
    one zero, found by bisection of log b.
    """
    logits = logits.double()
    logits = logits - logits.max(dim=1, keepdim=True).values
    own = logits.gather(1, labels[:, None]).mean()

    def slope(sharpness: float) -> float:
        expected = ((sharpness * logits).softmax(dim=1) * logits).sum(dim=1).mean()
        return float(own - expected)

    low, high = 1 / _HOTTEST, 1 / _COLDEST
    if slope(low) <= 0 or slope(high) >= 0:
        return None
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return 1 / math.sqrt(low * high)
