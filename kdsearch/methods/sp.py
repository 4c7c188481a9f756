"""Similarity-preserving distillation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdsearch.methods.base import PairLoss
from kdsearch.space import Choice, Float
from kdsearch.spec import PAIRWISE_MAPPINGS


class SimilarityPreserving(PairLoss):
    """Match the similarities of samples in a stage (Tung and Mori, ICCV 2019, arXiv:1907.09682).

    loss = sum over the pairs of ||G(student) - G(teacher)||^2 / B^2, where G is the Gram matrix
    [B, B] of the flattened maps, each row divided by its Euclidean norm (one port's L1 norm is a
    mistake: 0.37 times the value). Channels and sizes may differ; nothing is learned. The
    reference weight, 3000, is for one pair, and the loss shrinks as B grows.
    student, teacher: lists of maps [B, C, H, W]. No labels, so unlabelled images count too.
    """

    weight = 3000.0
    min_batch = 2
    ranges = {
        "weight": Float(low=30.0, high=30_000.0, log=True),
        "mapping": Choice(options=PAIRWISE_MAPPINGS),
    }

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of one pair."""
        return F.mse_loss(_similarity(student), _similarity(teacher))


def _similarity(maps: Tensor) -> Tensor:
    rows = maps.flatten(1)
    return F.normalize(rows @ rows.T, dim=1)
