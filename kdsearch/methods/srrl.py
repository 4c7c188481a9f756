"""Softmax regression representation learning."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.errors import SpecError
from kdsearch.methods.base import DistillLoss, Setting
from kdsearch.models.features import Outputs
from kdsearch.space import Float


class SRRL(DistillLoss):
    """Match the student's features through the teacher's head (Yang et al., ICLR 2021).

    loss = mean((e - teacher's embedding)^2) + mean((head(e) - teacher's logits)^2), where e is
    g(student's deepest stage) averaged over positions, and head the teacher's own, frozen.
    g: 1x1 convolution to the embedding's width, BatchNorm, ReLU. The ReLU is left out where the
    teacher's embedding goes below 0 in the batch that `prepare` sees (behind LayerNorm, say):
    g could not match it. student, teacher: Outputs, of equal K. Dropped at inference.
    Raises SpecError without a linear head of the teacher, or a stage of the student.
    """

    need = "outputs"
    reads = frozenset({"embedding", "logits"})
    is_distance = False
    min_batch = 2  # BatchNorm cannot train on one 1x1 map
    unfit = dict.fromkeys(
        ("segmentation", "detection"), "the teacher's head reads maps, no embedding"
    )
    ranges = {"weight": Float(low=0.1, high=10.0, log=True)}
    head_weight: Tensor
    head_bias: Tensor | None

    def build(self, student: Outputs, teacher: Outputs, setting: Setting) -> None:
        """Make g and keep the teacher's head, which is no part of the state to save."""
        if setting.teacher_head is None:
            raise SpecError(
                "method srrl applies the teacher's head to the student, and this teacher's head "
                "is not one linear layer on its embedding; use a teacher with such a head, "
                "or a method that compares embeddings or stages"
            )
        if not student.stages:
            raise SpecError("method srrl reads the student's deepest stage, and it has none")
        weight, bias = setting.teacher_head
        width = teacher.embedding.shape[1]
        if weight.shape != (teacher.logits.shape[1], width):
            raise SpecError(
                f"method srrl: the teacher's head has the shape {list(weight.shape)}, but it makes "
                f"{teacher.logits.shape[1]} logits of an embedding of {width}"
            )
        kept = None if bias is None else bias.detach().clone()
        self.register_buffer("head_weight", weight.detach().clone(), persistent=False)
        self.register_buffer("head_bias", kept, persistent=False)
        self.connector = nn.Sequential(
            nn.Conv2d(student.stages[-1].shape[1], width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU() if bool((teacher.embedding >= 0).all()) else nn.Identity(),
        )

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the loss; the target is unused."""
        embedding = self.connector(student.stages[-1]).mean(dim=(2, 3))
        logits = F.linear(embedding, self.head_weight, self.head_bias)
        return F.mse_loss(embedding, teacher.embedding) + F.mse_loss(logits, teacher.logits)
