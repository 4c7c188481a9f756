"""Knowledge review."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.methods.base import DistillLoss, Setting, resized
from kdsearch.space import Choice, Float
from kdsearch.spec import MAPPINGS

_MAX_WIDTH = 512
_POOLED_SIDES = (4, 2, 1)


class ReviewKD(DistillLoss):
    """Fuse the student's deep stages into its shallow ones (Chen et al., CVPR 2021, 2104.09044).

    loss = sum over the pairs, and a last one of both deepest maps averaged to 1x1, of
    HCL(fused student, teacher). From the deepest pair up, a stage is fused with the result of the
    deeper stages: a 1x1 convolution to min(512, channels of the student's deepest stage), an
    attention that weighs the two at each position, a 3x3 convolution to the teacher's channels.
    HCL: mean squared error of the maps, and of their averages at 4x4, 2x2 and 1x1 where these are
    smaller, weighted 1, 1/2, 1/4, 1/8 over their sum. Reference weights are .6 to 8 by pair.
    The paper uses maps before their ReLU; here they are the network's stages. A step
    costs about 9 * C_teacher * width multiply-adds a position of each stage.
    student, teacher: lists of maps, shallow to deep; sizes and channels are free.
    """

    need = "stages"
    is_distance = False
    mapping = "stride"
    min_batch = 2  # BatchNorm cannot train on one 1x1 map
    ranges = {
        "weight": Float(low=0.1, high=10.0, log=True),
        "mapping": Choice(options=MAPPINGS),
    }

    def build(self, student: Sequence[Tensor], teacher: Sequence[Tensor], setting: Setting) -> None:
        """Make a fusion for each pair and one for the pooled maps."""
        width = min(_MAX_WIDTH, student[-1].shape[1])
        pairs = zip(_with_pooled(student), _with_pooled(teacher), strict=True)
        last = len(student)
        self.fusions = nn.ModuleList(
            _Fusion(s.shape[1], width, t.shape[1], is_first=i == last)
            for i, (s, t) in enumerate(pairs)
        )

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], target: Tensor
    ) -> Tensor:
        """Return the loss; the target is unused."""
        triples = zip(self.fusions, _with_pooled(student), _with_pooled(teacher), strict=True)
        fused: Tensor | None = None
        losses = []
        for fuse, s, t in reversed(list(triples)):
            found, fused = fuse(s, fused, t.shape[2:])
            losses.append(hierarchical_distance(found, t))
        return torch.stack(losses).sum()


def hierarchical_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the paper's hierarchical context loss of two maps of equal shapes."""
    loss = F.mse_loss(student, teacher)
    total = weight = 1.0
    for side in (side for side in _POOLED_SIDES if side < student.shape[2]):
        weight /= 2
        total += weight
        s, t = (F.adaptive_avg_pool2d(maps, side) for maps in (student, teacher))
        loss = loss + weight * F.mse_loss(s, t)
    return loss / total


def _with_pooled(maps: Sequence[Tensor]) -> list[Tensor]:
    return [*maps, F.adaptive_avg_pool2d(maps[-1], 1)]


class _Fusion(nn.Module):
    """One stage, fused with the result of the deeper ones."""

    def __init__(self, channels: int, width: int, goal: int, *, is_first: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width))
        self.attend = None if is_first else nn.Conv2d(2 * width, 2, 1)
        self.leave = nn.Sequential(
            nn.Conv2d(width, goal, 3, padding=1, bias=False), nn.BatchNorm2d(goal)
        )

    def forward(
        self, maps: Tensor, deeper: Tensor | None, size: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Return maps like the teacher's at `size`, and the result for the next stage up."""
        x: Tensor = self.enter(maps)
        if self.attend is not None:
            assert deeper is not None
            deeper = F.interpolate(deeper, x.shape[2:])
            ours, theirs = self.attend(torch.cat([x, deeper], 1)).sigmoid().chunk(2, dim=1)
            x = x * ours + deeper * theirs
        return self.leave(resized(x, size)), x
