"""The head of a teacher: what its answer is, and another head in its place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdsearch.data.base import ImageData
from kdsearch.errors import SpecError
from kdsearch.models.features import Tapped
from kdsearch.models.model import Model
from kdsearch.models.probe import logits_of

_IMAGES = 8
_SUM = 1e-3  # by which the sum of probabilities in half precision may differ from 1


class WithHead(nn.Module):
    """A network without a head, and a linear head on its answer, or on each position of it."""

    def __init__(self, body: nn.Module, width: int, num_classes: int, *, is_dense: bool) -> None:
        super().__init__()
        self.body = body
        self.is_dense = is_dense
        self.head = nn.Conv2d(width, num_classes, 1) if is_dense else nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K] or [B, K, h, w] of x: [B, C, H, W]."""
        logits: Tensor = self.head(logits_of(self.body(x), is_dense=self.is_dense))
        return logits


def with_new_head(tapped: Tapped, width: int, num_classes: int) -> nn.Module:
    """Return the network with a fresh head: in place of its last layer, else on its answer."""
    network = tapped.module
    if tapped.head is None or not tapped.is_linear:
        return WithHead(network, width, num_classes, is_dense=tapped.is_dense)
    old = network.get_submodule(tapped.head.name)
    new: nn.Module = nn.Linear(width, num_classes)
    if isinstance(old, nn.Conv2d):
        new = nn.Conv2d(old.in_channels, num_classes, 1, bias=old.bias is not None)
    elif isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    network.set_submodule(tapped.head.name, new)
    return network


@torch.no_grad()
def answers_on(model: Model, data: ImageData) -> Tensor:
    """Return the answers [B, K, ...] of a network on a few training images.

    Raises SpecError for NaN.
    """
    answers: Tensor = model.eval()(data.train.some(_IMAGES))
    if not answers.isfinite().all():
        broken = [n for n, p in model.named_parameters() if not p.isfinite().all()]
        where = f"its weights hold NaN or infinity, in {', '.join(broken[:3])}"
        raise SpecError(
            f"--teacher {model.name}: it answers with NaN or infinity; "
            f"{where if broken else 'check the mean and std of its images'}"
        )
    return answers


def are_probabilities(answers: Tensor) -> bool:
    """Return whether answers [B, K, ...] are the output of a softmax: positive, with the sum 1."""
    sums = answers.sum(dim=1)
    return bool((answers >= 0).all()) and bool(((sums - 1).abs() < _SUM).all())
