"""The control: a student that learns from the labels alone."""

from __future__ import annotations

from torch import Tensor

from kdsearch.methods.base import DistillLoss


class NoTeacher(DistillLoss):
    """Add nothing to the task loss, to measure the gain of distillation.

    loss = 0, with alpha = 0; no teacher is used.
    """

    need = "nothing"
    reads = frozenset()
    alpha = 0.0

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return 0."""
        return student.new_zeros(())
