"""Channel-wise knowledge distillation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdsearch.methods.base import PairLoss, positive
from kdsearch.space import Choice, Float
from kdsearch.spec import PAIRWISE_MAPPINGS


class CWD(PairLoss):
    """Match the spatial distribution of each channel (Shu et al., ICCV 2021, arXiv:2011.13256).

    loss = sum over the pairs of tau^2 * KL(teacher || student) of the softmax over the H * W
    positions of map / tau, mean over samples and channels. Made for segmentation, where
    implementations use weights of 3 to 5 at tau 4, 4 to 5 and 1. A map of one position has the
    softmax 1 and contributes no gradient. student, teacher: lists of maps of equal
    shapes. Raises SpecError for tau <= 0.
    """

    align = frozenset({"channels", "size"})
    weight = 3.0
    ranges = {
        "weight": Float(low=0.1, high=100.0, log=True),
        "mapping": Choice(options=PAIRWISE_MAPPINGS),
        "tau": Float(low=0.5, high=16.0, log=True),
    }

    def __init__(self, tau: float = 4.0) -> None:
        super().__init__()
        self.tau = positive("cwd.tau", tau)

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of one pair."""
        s, t = (F.log_softmax(maps.flatten(2) / self.tau, dim=2) for maps in (student, teacher))
        total = F.kl_div(s, t, reduction="sum", log_target=True)
        return self.tau**2 * total / student.shape[:2].numel()
