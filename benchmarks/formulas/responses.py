"""Formulas on logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def kd(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Hinton et al., T = 4."""
    log_student = F.log_softmax(student / 4, dim=1)
    return 16 * F.kl_div(log_student, F.softmax(teacher / 4, dim=1), reduction="batchmean")


def kd_standardized(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Sun et al., T = 2."""
    student = (student - student.mean(1, keepdim=True)) / (student.std(1, keepdim=True) + 1e-7)
    teacher = (teacher - teacher.mean(1, keepdim=True)) / (teacher.std(1, keepdim=True) + 1e-7)
    log_student = F.log_softmax(student / 2, dim=1)
    return 4 * F.kl_div(log_student, F.softmax(teacher / 2, dim=1), reduction="batchmean")


def function_matching(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Beyer et al., T = 1."""
    log_student = F.log_softmax(student, dim=1)
    return F.kl_div(log_student, F.softmax(teacher, dim=1), reduction="batchmean")


def hard_label(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Touvron et al."""
    return F.cross_entropy(student, teacher.argmax(1))


def label_smoothing(student: Tensor, teacher: Tensor | None, target: Tensor) -> Tensor:
    """Szegedy et al.: the part of smoothed labels that is not the label."""
    return -F.log_softmax(student, dim=1).mean(1).mean()


def dkd(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Zhao et al., T = 4, beta = 8."""
    own = F.one_hot(target, student.shape[1]).bool()
    p, q = F.softmax(student / 4, dim=1), F.softmax(teacher / 4, dim=1)
    p_pair = torch.stack([(p * own).sum(1), (p * ~own).sum(1)], dim=1)
    q_pair = torch.stack([(q * own).sum(1), (q * ~own).sum(1)], dim=1)
    on_target = F.kl_div(p_pair.log(), q_pair, reduction="batchmean")
    log_rest = F.log_softmax(student / 4 - 1000 * own, dim=1)
    rest = F.softmax(teacher / 4 - 1000 * own, dim=1)
    return 16 * (on_target + 8 * F.kl_div(log_rest, rest, reduction="batchmean"))


def nkd(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Yang et al., T = 1, gamma = 1.5."""
    batch, classes = student.shape
    p_own = F.softmax(student, dim=1).gather(1, target[:, None])
    q_own = F.softmax(teacher, dim=1).gather(1, target[:, None])
    others = ~F.one_hot(target, classes).bool()
    p_rest = F.log_softmax(student[others].view(batch, classes - 1), dim=1)
    q_rest = F.softmax(teacher[others].view(batch, classes - 1), dim=1)
    return -(q_own * p_own.log()).mean() - 1.5 * (q_rest * p_rest).sum(1).mean()


def dist(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Huang et al., T = 1, beta = gamma = 1."""
    p, q = F.softmax(student, dim=1), F.softmax(teacher, dim=1)
    return (1 - _pearson(p, q)) + (1 - _pearson(p.T, q.T))


def _pearson(p: Tensor, q: Tensor) -> Tensor:
    p, q = p - p.mean(1, keepdim=True), q - q.mean(1, keepdim=True)
    norms: Tensor = p.norm(dim=1) * q.norm(dim=1) + 1e-8
    return ((p * q).sum(1) / norms).mean()


def wsld(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Zhou et al., T = 2."""
    log_p, q = F.log_softmax(student / 2, dim=1), F.softmax(teacher / 2, dim=1)
    ours = F.cross_entropy(student.detach(), target, reduction="none")
    theirs = F.cross_entropy(teacher, target, reduction="none")
    weight = 1 - torch.exp(-ours / (theirs + 1e-7))
    return 4 * (weight * F.kl_div(log_p, q, reduction="none").sum(1)).mean()
