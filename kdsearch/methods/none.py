"""The control: a student that learns from the labels alone."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdsearch.methods.base import DistillLoss, Need, Part


class NoTeacher(DistillLoss):
    """Add nothing to the task loss, to measure the gain of distillation.

    loss = 0, with alpha = 0; no teacher is used.
    """

    need: ClassVar[Need] = "nothing"
    reads: ClassVar[frozenset[Part]] = frozenset()
    alpha: ClassVar[float] = 0.0

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return 0."""
        return student.new_zeros(())
