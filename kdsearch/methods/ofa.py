"""One for all: distillation between unlike architectures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.errors import SpecError
from kdsearch.methods._exits import Exit
from kdsearch.methods.base import DistillLoss, Setting, positive
from kdsearch.models.features import Outputs
from kdsearch.space import Float


class OFA(DistillLoss):
    """Distil every stage in the space of logits (Hao et al., NeurIPS 2023, arXiv:2310.19444).

    loss = sum over an exit on each of the student's stages, and its own logits, of
    -sum_k ((p_k + y_k)^eps - y_k) log q_k, mean over the batch; p: the teacher's probabilities,
    q: the exit's, y: 1 for the target class, else 0. With eps 1 it is the cross-entropy with the
    teacher's probabilities; above 1, classes that are unlikely to the teacher count less and the
    target more. Temperature 1. The paper's exits on tokens are transformer blocks; here all stages
    are maps and an exit is its separable convolutions for CNNs. Dropped at inference.
    student, teacher: Outputs, of equal K. Raises SpecError for eps <= 0, a student without stages.
    """

    need = "outputs"
    reads = frozenset({"logits"})
    labels = "hard"
    is_distance = False
    min_batch = 2  # BatchNorm cannot train on one 1x1 map
    unfit = dict.fromkeys(("segmentation", "detection"), "its exits give one class an image")
    ranges = {
        "weight": Float(low=0.1, high=10.0, log=True),
        "eps": Float(low=1.0, high=1.5),
    }

    def __init__(self, eps: float = 1.0) -> None:
        super().__init__()
        self.eps = positive("ofa.eps", eps)

    def build(self, student: Outputs, teacher: Outputs | None, setting: Setting) -> None:
        """Make an exit on each stage."""
        if not student.stages:
            raise SpecError("method ofa puts exits on the student's stages, and it has none")
        classes = student.logits.shape[1]
        self.exits = nn.ModuleList(Exit(maps, classes) for maps in student.stages)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the loss."""
        right = F.one_hot(target, student.logits.shape[1])
        goal = (teacher.logits.softmax(dim=1) + right).pow(self.eps) - right
        exits = zip(self.exits, student.stages, strict=True)
        answers = torch.stack([*(leave(maps)[0] for leave, maps in exits), student.logits])
        return -(goal * answers.log_softmax(dim=2)).sum(dim=2).mean(dim=1).sum()
