"""Teacher ensemble: a weight for each sample and teacher."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdsearch.errors import SpecError
from kdsearch.spec import DistillSpec
from kdsearch.tasks import Task


class TeacherEnsemble(nn.Module):
    """Weights [B, T] of T teachers; each row sums to 1.

    equal, or fixed shares: the same for every sample. confidence: (1 - softmax of the teachers'
    cross-entropies with the label) / (T - 1) (Zhang et al., ICASSP 2022, 2201.00007, eq. 2); a
    sample without a label is shared equally. learned: a linear gate on the student's embedding
    and a softmax. The gate is trained to make the ensemble predict the labels. Trained by
    the distillation loss, as in the literature (Liu et al., 2020, 2103.04062), it would favour the
    teacher that is easiest to copy. No gradient goes from the gate to the student.
    """

    shares: Tensor

    def __init__(self, spec: DistillSpec, task: Task, *, teachers: int, embedding: int) -> None:
        super().__init__()
        fixed = spec.teacher_shares()
        if fixed is not None and len(fixed) != teachers:
            raise SpecError(
                f"method.teachers: {spec.teachers!r} has {len(fixed)} shares, and there "
                f"{'is' if teachers == 1 else 'are'} {teachers} teacher{'s' * (teachers != 1)}"
            )
        self.kind = spec.teachers
        self.task = task
        self.register_buffer("shares", torch.tensor(fixed or [1 / teachers] * teachers))
        self.gate = nn.Linear(embedding, teachers) if self.kind == "learned" else None

    def forward(self, embedding: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        """Return the weights. embedding: [B, D]; logits: the teachers' answers, [B, T, ...]."""
        if self.gate is not None:
            weights: Tensor = self.gate(embedding.detach().float()).softmax(dim=1)
            return weights
        if self.kind != "confidence":
            return self.shares.expand(len(logits), -1)
        wrong = self.task.image_losses(logits, target)
        return (1 - wrong.softmax(dim=1)) / (logits.shape[1] - 1)
