"""Feature distillation weighted by the teacher's scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdsearch.data.base import DETECTION
from kdsearch.errors import SpecError
from kdsearch.methods._points import nearest, objectness
from kdsearch.methods.base import DistillLoss, Setting, resized
from kdsearch.models.features import Outputs
from kdsearch.space import Float


class ScoreL2(DistillLoss):
    """Match the levels of two detectors where the teacher sees objects.

    loss = sum over the student's levels of the weighted mean over positions of the mean over
    channels of (A(student) - teacher)^2; weights: the teacher's largest score at the position, A:
    two 1x1 convolutions with a ReLU between them. Ultralytics 8.4 sums over channels and images;
    its forerunner is prediction-guided distillation (Yang et al., ECCV 2022, arXiv:2203.05469).
    """

    need = "outputs"
    reads = frozenset({"logits", "stages"})
    tasks = frozenset({DETECTION})
    is_distance = False
    weight = 3.0
    ranges = {"weight": Float(low=0.1, high=30.0, log=True)}

    def check(self, student: Any, teacher: Any) -> None:
        """Raise SpecError unless both are outputs, the teacher's of a detector."""
        if not isinstance(student, Outputs) or not isinstance(teacher, Outputs):
            raise SpecError(f"{self._name} compares Outputs, those of a whole network")
        if teacher.logits.ndim != 3 or not student.stages or not teacher.stages:
            raise SpecError(f"{self._name} compares the levels of detectors")

    def build(self, student: Outputs, teacher: Outputs, setting: Setting) -> None:
        """Make an adapter for each level of the student."""
        self.theirs = teacher.levels
        sizes = [(maps.shape[2], maps.shape[3]) for maps in teacher.stages]
        self.places = [nearest((s.shape[2], s.shape[3]), sizes) for s in student.stages]
        self.adapters = nn.ModuleList(
            _adapter(maps.shape[1], teacher.stages[place].shape[1])
            for maps, place in zip(student.stages, self.places, strict=True)
        )

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum over levels; the target is unused."""
        scores = objectness(teacher.logits)
        sizes = [height * width for height, width in self.theirs]
        weights = [
            part.view(-1, *level)
            for part, level in zip(torch.split(scores, sizes, dim=1), self.theirs, strict=True)
        ]
        losses = []
        for adapter, maps, place in zip(self.adapters, student.stages, self.places, strict=True):
            goal, weight = teacher.stages[place], weights[place]
            adapted = adapter(resized(maps, goal.shape[2:], mode="bilinear"))
            each = (adapted - goal).square().mean(dim=1)
            losses.append((weight * each).sum() / weight.sum().clamp(min=1e-6))
        return torch.stack(losses).sum()


def _adapter(channels: int, goal: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, goal, 1), nn.ReLU(), nn.Conv2d(goal, goal, 1))
