"""What methods on the points of a detector's grid share.

Values of the teacher are read at the student's points: each level of the student from the level of
the teacher that is nearest in size, resized where the sizes differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.data.base import DETECTION
from kdsearch.data.sizes import Size
from kdsearch.errors import SpecError
from kdsearch.methods.base import DistillLoss, Need, Setting
from kdsearch.models.features import Outputs


class PointLoss(DistillLoss):
    """A loss on the logits [B, P, K] and edges [B, P, 4, bins] of two detectors."""

    need: ClassVar[Need] = "outputs"
    reads = frozenset({"logits"})
    tasks = frozenset({DETECTION})

    def check(self, student: Any, teacher: Any) -> None:
        """Raise SpecError unless both are outputs of detectors of the same classes."""
        if not isinstance(student, Outputs) or not isinstance(teacher, Outputs):
            raise SpecError(f"{self._name} compares Outputs, those of a whole network")
        for who, found in (("student", student), ("teacher", teacher)):
            if found.logits.ndim != 3 or ("edges" in self.reads and found.edges is None):
                raise SpecError(f"{self._name} compares detectors; the {who} is none")
        mine, theirs = student.logits.shape[2], teacher.logits.shape[2]
        if "logits" in self.reads and mine != theirs:
            raise SpecError(f"{self._name}: the student has {mine} classes, the teacher {theirs}")

    def build(self, student: Outputs, teacher: Outputs, setting: Setting) -> None:
        """Keep the levels of both grids."""
        self.mine, self.theirs = student.levels, teacher.levels

    def at_points(self, values: Tensor, *, mode: str = "bilinear") -> Tensor:
        """Return values [B, P', C] of the teacher at the student's points, [B, P, C]."""
        return at_points(values, self.theirs, self.mine, mode=mode)


def at_points(values: Tensor, theirs: Sequence[Size], mine: Sequence[Size], *, mode: str) -> Tensor:
    """Return values [B, P', C] of a grid at the points of another, [B, P, C]."""
    if theirs == mine:
        return values
    parts = torch.split(values, [height * width for height, width in theirs], dim=1)
    found = []
    for size in mine:
        place = nearest(size, theirs)
        maps = parts[place].transpose(1, 2)
        maps = maps.reshape(*maps.shape[:2], *theirs[place])
        options = {} if mode == "nearest" else {"align_corners": False}
        found.append(F.interpolate(maps, size, mode=mode, **options).flatten(2).transpose(1, 2))
    return torch.cat(found, dim=1)


def nearest(size: Size, levels: Sequence[Size]) -> int:
    """Return the place of the level whose height is nearest in ratio."""
    ratios = [max(size[0] / height, height / size[0]) for height, _ in levels]
    return ratios.index(min(ratios))


def objectness(logits: Tensor) -> Tensor:
    """Return the largest score [B, P] of each point."""
    return logits.sigmoid().amax(dim=2)
