"""Your own method: a Huber loss on centred logits."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from kdsearch.methods.base import DistillLoss, Need, Ranges, positive
from kdsearch.space import Float


class CentredLogits(DistillLoss):
    """Match logits up to their mean with the Huber loss.

    student, teacher: [B, K]. beta: distance above which the loss grows linearly.
    """

    need: ClassVar[Need] = "logits"
    alpha: ClassVar[float] = 0.7
    ranges: ClassVar[Ranges] = {"beta": Float(low=0.3, high=10.0, log=True)}

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        self.beta = positive("beta", beta)

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the loss; the target is not used."""
        ours = student - student.mean(dim=1, keepdim=True)
        theirs = teacher - teacher.mean(dim=1, keepdim=True)
        return F.smooth_l1_loss(ours, theirs, beta=self.beta)
