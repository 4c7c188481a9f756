"""Contrastive representation distillation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.errors import SpecError
from kdsearch.methods.base import DistillLoss, Setting, positive
from kdsearch.models.features import Outputs
from kdsearch.space import Float

_WIDTH = 128
_MOMENTUM = 0.5


class CRD(DistillLoss):
    """Contrast a sample with stored ones of other classes (Tian et al., ICLR 2020, 1910.10699).

    loss = S(student, memory of the teacher) + S(teacher, memory of the student), where
    S(e, m) = mean over the batch of -log h(e, m_own) - K * mean over negatives of log(1 - h(e, m)),
    h = P / (P + K / N), P = exp(e m / tau) / Z (eq. 18, 19). e: unit vectors of a linear layer to
    128. m: one such vector for each of the N training samples, uniform noise until the sample is
    seen, then moved half-way to e in training mode. Z: N * the first batch's mean exp(e m / tau).

    K rows are sampled once for the whole batch, uniformly, with replacement, at most N - 1: a
    matrix product instead of gathering B * K * 128 numbers. K defaults to 4096; the
    paper's 16384 is for N = 50,000. Negatives are of other classes ("exact"): labels are
    stored as samples are seen, and rows of the same class, the sample's own among them, are
    left out of the mean; an unseen row is noise, so of no class. A mixed image counts as its
    larger share, and as its own row. Memory: 2 * N * 512 bytes, 1.3 GB for ImageNet.
    student, teacher: Outputs; teacher.index holds the rows. Raises SpecError for an unknown N,
    without an index, for tau <= 0, or when negatives is no whole number above 0.
    """

    need = "outputs"
    reads = frozenset({"embedding"})
    labels = "hard"
    weight = 0.8
    min_batch = 2
    is_distance = False
    unfit = dict.fromkeys(
        ("segmentation", "detection"), "it contrasts whole images by their one class"
    )
    ranges = {"weight": Float(low=0.08, high=8.0, log=True)}
    classes: Tensor

    def __init__(self, negatives: int = 4096, tau: float = 0.07) -> None:
        super().__init__()
        if not isinstance(negatives, int) or isinstance(negatives, bool) or negatives < 1:
            raise SpecError(f"method crd.negatives: {negatives!r} is not a whole number > 0")
        self.negatives = negatives
        self.tau = positive("crd.tau", tau)

    def build(self, student: Outputs, teacher: Outputs, setting: Setting) -> None:
        """Make the two embeddings, the two memories and the classes of their rows, -1: unseen."""
        if setting.samples < 2:
            raise SpecError(
                f"method crd stores every sample of the training set and needs at "
                f"least 2, not {setting.samples}; infonce contrasts within the batch"
            )
        self.embed_student = nn.Linear(student.embedding.shape[1], _WIDTH)
        self.embed_teacher = nn.Linear(teacher.embedding.shape[1], _WIDTH)
        self.of_student, self.of_teacher = _Memory(setting.samples), _Memory(setting.samples)
        self.register_buffer("classes", torch.full((setting.samples,), -1))

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the loss; in training mode, store the batch."""
        index = teacher.index
        if index is None:
            raise SpecError(
                "method crd needs the indices of the training samples (Outputs.index); "
                "infonce contrasts within the batch"
            )
        seen_by_student = F.normalize(self.embed_student(student.embedding), dim=1)
        seen_by_teacher = F.normalize(self.embed_teacher(teacher.embedding), dim=1)
        count = min(self.negatives, len(self.classes) - 1)
        drawn = torch.randint(len(self.classes), (count,), device=index.device)
        is_other = self.classes[drawn] != target[:, None]
        loss: Tensor = self.of_teacher(seen_by_student, index, drawn, is_other, tau=self.tau)
        loss = loss + self.of_student(seen_by_teacher, index, drawn, is_other, tau=self.tau)
        if self.training:
            self.of_student.update(index, seen_by_student.detach())
            self.of_teacher.update(index, seen_by_teacher.detach())
            self.classes.index_copy_(0, index, target)
        return loss


class _Memory(nn.Module):
    """One vector a training sample; `log_scale`: log(Z * K / N), NaN until it is known."""

    rows: Tensor
    log_scale: Tensor

    def __init__(self, samples: int) -> None:
        super().__init__()
        bound = math.sqrt(3 / _WIDTH)  # expected length 1
        self.register_buffer("rows", torch.empty(samples, _WIDTH).uniform_(-bound, bound))
        self.register_buffer("log_scale", torch.full((), math.nan))

    def forward(
        self, seen: Tensor, index: Tensor, drawn: Tensor, is_other: Tensor, *, tau: float
    ) -> Tensor:
        """Return S(seen, rows): h is the sigmoid of e m / tau - log_scale."""
        own = (seen * self.rows[index]).sum(dim=1, keepdim=True) / tau
        scores = torch.cat([own, seen @ self.rows[drawn].T / tau], dim=1)
        first = scores.detach().flatten().logsumexp(0) + math.log(len(drawn) / scores.numel())
        log_scale = torch.where(self.log_scale.isnan(), first, self.log_scale)
        if self.training:
            self.log_scale.copy_(log_scale)
        odds = scores - log_scale
        negative = (F.softplus(odds[:, 1:]) * is_other).sum(1) / is_other.sum(1).clamp(min=1)
        return (F.softplus(-odds[:, 0]) + len(drawn) * negative).mean()

    def update(self, index: Tensor, seen: Tensor) -> None:
        """Move the rows of these samples towards their embeddings."""
        moved = _MOMENTUM * self.rows[index] + (1 - _MOMENTUM) * seen
        self.rows.index_copy_(0, index, F.normalize(moved, dim=1))
