"""Intra-class feature variation distillation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.methods.base import DistillLoss
from kdsearch.space import Choice, Float
from kdsearch.spec import PAIRWISE_MAPPINGS

_IDS = 256  # of a mask of bytes; the last is void


class IFVD(DistillLoss):
    """Match how far positions are from the mean of their class (Wang et al., ECCV 2020).

    loss = sum over the pairs of the mean over labelled positions of
    (cos(student, its class's mean) - cos(teacher, its class's mean))^2; the mean of a class is over
    its positions in the image. Labels of pixels are resized to the map by nearest neighbour; where
    an image has one label, all its positions have it. The authors' code divides by all positions,
    at weight 200; positions without a label count nowhere here.
    student, teacher: lists of maps of equal sizes; channels may differ.
    target: [B] class indices, or masks [B, H, W].
    """

    need = "stages"
    align = frozenset({"size"})
    is_pairwise = True
    labels = "hard"
    weight = 200.0
    ranges = {
        "weight": Float(low=10.0, high=2000.0, log=True),
        "mapping": Choice(options=PAIRWISE_MAPPINGS),
    }

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], target: Tensor
    ) -> Tensor:
        """Return the sum over the pairs."""
        losses = []
        for mine, theirs in zip(student, teacher, strict=True):
            ids = _ids_of(target, mine.shape[2:])
            squares = (_similarity(mine, ids) - _similarity(theirs, ids)).square()
            known = ids != _IDS - 1
            losses.append((squares * known).sum() / known.sum().clamp(min=1))
        return torch.stack(losses).sum()


def _ids_of(target: Tensor, size: torch.Size) -> Tensor:
    """Return the id of each position's class, int64 [B, h * w]: 0 to 254, or 255 for none."""
    if target.ndim == 1:  # the positions of an image are compared among themselves alone
        one = torch.where(target < 0, _IDS - 1, 0)
        return one[:, None].expand(-1, size.numel())
    small = F.interpolate(target[:, None].float(), tuple(size), mode="nearest")
    return small.long().flatten(1)


def _similarity(maps: Tensor, ids: Tensor) -> Tensor:
    """Return the cosine [B, h * w] of each position with the mean of its class in the image."""
    rows = maps.flatten(2).transpose(1, 2)
    index = ids[:, :, None].expand_as(rows)
    sums = rows.new_zeros(len(rows), _IDS, rows.shape[2]).scatter_add(1, index, rows)
    # A sum has the direction of the mean.
    return (F.normalize(rows, dim=2) * F.normalize(sums, dim=2).gather(1, index)).sum(dim=2)
