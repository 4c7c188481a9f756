"""Attention transfer between Grad-CAM maps."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.errors import SpecError
from kdsearch.methods.base import DistillLoss, Setting
from kdsearch.models.features import Outputs, gradient_at
from kdsearch.space import Float


class GradCAM(DistillLoss):
    """Match the positions of the deepest maps that support the teacher's class.

    loss = mean((Q(student) - Q(teacher))^2), where Q is Grad-CAM (Selvaraju et al., ICCV 2017,
    arXiv:1610.02391), sum_c w_c * map_c, with w_c the average over positions of the gradient of
    the logit of the class that the teacher predicts; [B, H * W], divided by its Euclidean norm.
    The paper's ReLU is left out: a student whose map is negative everywhere would get no gradient.
    Of two sizes, the larger is averaged down first. The distance and its weight are those of
    attention transfer (Zagoruyko and Komodakis, ICLR 2017, arXiv:1612.03928, whose section 3.2
    compares gradients of the loss in the input instead). The gradient of the student is
    differentiated again, from the logits to the deepest stage only.
    student, teacher: Outputs, of equal K, with stages; the teacher's with its gradient, the
    student's with its graph. Raises SpecError where these are missing, and when the logits do
    not read the deepest stage: a class token reads the stage before. Maps of one position give
    no gradient.
    """

    need = "outputs"
    reads = frozenset({"logits", "stages", "gradient"})
    weight = 1000.0
    unfit = dict.fromkeys(
        ("segmentation", "detection"), "an image has no single class whose evidence it could locate"
    )
    ranges = {"weight": Float(low=10.0, high=10_000.0, log=True)}

    def __init__(self) -> None:
        super().__init__()
        self._is_read = False

    def check(self, student: Outputs, teacher: Outputs) -> None:
        """Raise SpecError also when stages or the teacher's gradient are missing."""
        super().check(student, teacher)
        for side, outputs in (("student", student), ("teacher", teacher)):
            if not outputs.stages:
                raise SpecError(f"method grad_cam reads the deepest stage; the {side} has none")
        if teacher.gradient is None or teacher.gradient.shape != teacher.stages[-1].shape:
            raise SpecError(
                "method grad_cam needs the gradient of the teacher's largest logits in its deepest "
                "stage; kdsearch.models.features.gradient_of takes it"
            )

    def build(self, student: Outputs, teacher: Outputs, setting: Setting) -> None:
        """Make nothing, and refuse a teacher that does not read its deepest stage."""
        assert teacher.gradient is not None
        _refuse_unread("teacher", teacher.gradient)

    def __call__(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the loss. The student's gradient is taken before its maps are widened.

        A widened map is a copy, which the logits do not read.
        """
        self.check(student, teacher)
        predicted = teacher.logits.argmax(dim=1, keepdim=True)
        score = student.logits.gather(1, predicted).sum()
        with torch.autocast(target.device.type, enabled=False):
            gradient = gradient_at(score, student.stages[-1], create_graph=True)
        if not self._is_read:
            _refuse_unread("student", gradient)
            self._is_read = True
        return super().__call__(replace(student, gradient=gradient), teacher, target)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the loss; the target is unused."""
        ours, theirs = _cam(student), _cam(teacher)
        size = min(ours.shape[1], theirs.shape[1]), min(ours.shape[2], theirs.shape[2])
        return F.mse_loss(_normalised(ours, size), _normalised(theirs, size))


def _cam(outputs: Outputs) -> Tensor:
    assert outputs.gradient is not None
    weights = outputs.gradient.mean(dim=(2, 3), keepdim=True)
    return (weights * outputs.stages[-1]).sum(dim=1)


def _normalised(cam: Tensor, size: tuple[int, int]) -> Tensor:
    return F.normalize(F.adaptive_avg_pool2d(cam, size).flatten(1), dim=1)


def _refuse_unread(side: str, gradient: Tensor) -> None:
    if not gradient.any():
        raise SpecError(
            f"method grad_cam: the {side}'s logits do not depend on its deepest stage (they are "
            "read from a class token, or the head starts at zero); use at"
        )
