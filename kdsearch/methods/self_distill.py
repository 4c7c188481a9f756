"""Self-distillation from the deep stages to the shallow ones."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.errors import SpecError
from kdsearch.methods._exits import Exit
from kdsearch.methods.base import DistillLoss, Setting, positive
from kdsearch.models.features import Outputs
from kdsearch.space import Float


class SelfDistill(DistillLoss):
    """Distil a student's own outputs into its stages (Zhang et al., ICCV 2019, arXiv:1905.08094).

    loss = sum over an exit on each stage but the deepest of cross-entropy with the labels
    + T^2 * KL(student's own logits || exit's logits) at temperature T, mean over the batch,
    + hint * mean((h(exit's features) - deepest stage averaged over positions)^2). Logits and
    deepest stage are detached: only the exits learn from them. h: a linear
    layer, for the widths differ. The paper compares feature maps, with .03 of a sum; here the
    mean has that weight, a hint of one. Mixed labels are cross-entropy's own. Dropped at inference.
    student: Outputs with two stages or more; teacher: None. Raises SpecError for fewer stages,
    temperature <= 0, hint < 0.
    """

    need = "outputs"
    reads = frozenset()
    labels = "mixed"
    is_distance = False
    min_batch = 2  # BatchNorm cannot train on one 1x1 map
    unfit = dict.fromkeys(("segmentation", "detection"), "its exits give one class an image")
    ranges = {
        "weight": Float(low=0.1, high=10.0, log=True),
        "temperature": Float(low=1.0, high=16.0, log=True),
        "hint": Float(low=0.001, high=1.0, log=True),
    }

    def __init__(self, temperature: float = 3.0, hint: float = 0.03) -> None:
        super().__init__()
        self.temperature = positive("self_distill.temperature", temperature)
        self.hint = positive("self_distill.hint", hint, or_zero=True)

    def build(self, student: Outputs, teacher: Outputs | None, setting: Setting) -> None:
        """Make an exit on each stage but the deepest."""
        if len(student.stages) < 2:
            raise SpecError(
                "method self_distill puts exits on all stages but the deepest and needs two, not "
                f"{len(student.stages)}; use a deeper student, or method none"
            )
        classes, goal = student.logits.shape[1], student.stages[-1].shape[1]
        exits = [Exit(maps, classes) for maps in student.stages[:-1]]
        self.exits = nn.ModuleList(exits)
        self.hints = nn.ModuleList(nn.Linear(leave.width, goal) for leave in exits)

    def forward(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> Tensor:
        """Return the loss."""
        goal = F.log_softmax(student.logits.detach() / self.temperature, dim=1)
        deepest = student.stages[-1].detach().mean(dim=(2, 3))
        target = target.to(goal.dtype) if target.ndim == 2 else target
        losses = []
        for leave, hint, maps in zip(self.exits, self.hints, student.stages[:-1], strict=True):
            logits, features = leave(maps)
            found = F.log_softmax(logits / self.temperature, dim=1)
            soft = F.kl_div(found, goal, reduction="batchmean", log_target=True)
            near = F.mse_loss(hint(features), deepest)
            hard = F.cross_entropy(logits, target)
            losses.append(hard + self.temperature**2 * soft + self.hint * near)
        return torch.stack(losses).sum()
