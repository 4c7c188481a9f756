"""Structured knowledge distillation, its pair-wise part."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdsearch.errors import SpecError
from kdsearch.methods.base import PairLoss
from kdsearch.space import Choice, Float, Int
from kdsearch.spec import PAIRWISE_MAPPINGS

_MOST = 32  # nodes a side: the similarities are nodes^4


class SKD(PairLoss):
    """Match the similarities of places within an image (Liu et al., CVPR 2019, arXiv:1903.04197).

    loss = sum over the pairs of mean((S(student) - S(teacher))^2) over pairs of nodes and images;
    S: cosines between the nodes, which are the largest values within nodes x nodes parts of the
    map. As in the authors' code the norms pass no gradient; it has 2 x 2 nodes, at weights of 0.5
    to 1. Its part on pixels is `kd`.
    student, teacher: lists of maps of equal sizes; channels may differ. nodes: a side, at most 32.
    """

    align = frozenset({"size"})
    weight = 1.0
    ranges = {
        "weight": Float(low=0.1, high=100.0, log=True),
        "mapping": Choice(options=PAIRWISE_MAPPINGS),
        "nodes": Int(low=2, high=_MOST, log=True),
    }

    def __init__(self, nodes: int = 8) -> None:
        super().__init__()
        is_whole = isinstance(nodes, int) and not isinstance(nodes, bool)
        if not is_whole or not 2 <= nodes <= _MOST:
            raise SpecError(f"method skd.nodes: {nodes!r} is not a whole number from 2 to {_MOST}")
        self.nodes = nodes

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of one pair."""
        return F.mse_loss(self._similarities(student), self._similarities(teacher))

    def _similarities(self, maps: Tensor) -> Tensor:
        """Return the cosines [B, nodes^2, nodes^2]."""
        height, width = (-(-side // self.nodes) for side in maps.shape[2:])
        pooled = F.max_pool2d(maps, (height, width), ceil_mode=True)
        norms = pooled.detach().square().sum(dim=1, keepdim=True).sqrt() + 1e-8
        nodes = (pooled / norms).flatten(2)
        return nodes.transpose(1, 2) @ nodes
