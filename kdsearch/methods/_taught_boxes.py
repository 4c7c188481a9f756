"""What methods on the boxes of a teacher share."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from kdsearch.data.base import DETECTION
from kdsearch.errors import SpecError
from kdsearch.methods.base import DistillLoss, Need, Setting
from kdsearch.models.features import Outputs


class TaughtBoxes(DistillLoss):
    """A loss of a detector on the boxes [B, n, 6] that a teacher found.

    known: int64, the classes that the teacher knows; None: all.
    """

    need: ClassVar[Need] = "outputs"
    reads = frozenset({"boxes"})
    tasks = frozenset({DETECTION})
    is_distance = False
    known: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("known", None, persistent=False)

    def check(self, student: Any, teacher: Any) -> None:
        """Raise SpecError unless there is a teacher, and the student is a detector."""
        if teacher is None:
            raise SpecError(f"{self._name} needs boxes of a teacher")
        if not isinstance(student, Outputs) or student.edges is None:
            raise SpecError(f"{self._name} teaches boxes; the student is no detector")

    def build(self, student: Outputs, teacher: Outputs, setting: Setting) -> None:
        """Keep the classes that the teacher knows."""
        if setting.teacher_classes is not None:
            self.known = torch.tensor(setting.teacher_classes, device=student.logits.device)

    def boxes_of(self, teacher: Outputs) -> Tensor:
        """Return the teacher's boxes [B, n, 6]. Raises SpecError without them."""
        if teacher.boxes is None:
            raise SpecError(f"{self._name}: the teacher's outputs have no boxes")
        return teacher.boxes
