"""Localisation distillation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdsearch.errors import SpecError
from kdsearch.methods._points import PointLoss, objectness
from kdsearch.methods.base import Setting, positive
from kdsearch.models.features import Outputs
from kdsearch.space import Float


class LD(PointLoss):
    """Match the distributions of the edges (Zheng et al., CVPR 2022, arXiv:2102.12252).

    loss = mean over edges of T^2 KL(teacher || student), its sum over bins, weighted by the
    teacher's largest score at the point. The authors average over bins, at T = 10 and weight 0.25,
    on points that hold objects. Both grids must be equal: edges are in cells.
    """

    reads = frozenset({"logits", "edges"})
    weight = 4.0
    ranges = {
        "weight": Float(low=0.1, high=20.0, log=True),
        "temperature": Float(low=1.0, high=10.0, log=True),
    }

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = positive("ld.temperature", temperature)

    def build(self, student: Outputs, teacher: Outputs, setting: Setting) -> None:
        """Raise SpecError for grids that differ."""
        super().build(student, teacher, setting)
        if self.mine != self.theirs:
            raise SpecError(
                f"{self._name} compares edges in cells, on equal grids; the levels (h, w) of the "
                f"student are {self.mine}, those of the teacher {self.theirs}: give the student "
                "the teacher's resolution and finest stride, or use box_iou"
            )

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the loss; the target is unused."""
        assert student.edges is not None
        assert teacher.edges is not None
        weight = objectness(teacher.logits)
        each = divergence(student.edges, teacher.edges, self.temperature).mean(dim=2)
        return (weight * each).sum() / weight.sum().clamp(min=1e-6)


def divergence(edges: Tensor, theirs: Tensor, temperature: float | Tensor) -> Tensor:
    """Return T^2 KL(theirs || edges) [...] of logits [..., bins], the sum over bins."""
    log, goal = (F.log_softmax(found / temperature, dim=-1) for found in (edges, theirs))
    return F.kl_div(log, goal, reduction="none", log_target=True).sum(dim=-1) * temperature**2
