"""Formulas on how samples, or tokens, lie to each other."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.formulas.base import Known, Maps, total
from kdsearch.models.features import Outputs


def sp(student: Maps, teacher: Maps, target: Tensor) -> Tensor:
    """Tung and Mori."""
    losses = []
    for s, t in zip(student, teacher, strict=True):
        ours, theirs = s.reshape(len(s), -1), t.reshape(len(t), -1)
        ours, theirs = F.normalize(ours @ ours.T), F.normalize(theirs @ theirs.T)
        losses.append((ours - theirs).pow(2).sum() / len(s) ** 2)
    return total(losses)


def skd(student: Maps, teacher: Maps, target: Tensor) -> Tensor:
    """Liu et al., the pair-wise part with at most 8 x 8 nodes."""
    losses = []
    for s, t in zip(student, teacher, strict=True):
        kernel = (math.ceil(s.shape[2] / 8), math.ceil(s.shape[3] / 8))
        grams = []
        for maps in (s, t):
            nodes = F.max_pool2d(maps, kernel, kernel, ceil_mode=True)
            nodes = nodes / (nodes.detach().norm(dim=1, keepdim=True) + 1e-8)
            grams.append(torch.einsum("bchw,bcij->bhwij", nodes, nodes))
        losses.append((grams[0] - grams[1]).pow(2).mean())
    return total(losses)


def ifvd(student: Maps, teacher: Maps, target: Tensor) -> Tensor:
    """Wang et al., each image of one class."""
    losses = []
    for s, t in zip(student, teacher, strict=True):
        ours, theirs = (
            F.cosine_similarity(maps, maps.mean((2, 3), keepdim=True), dim=1) for maps in (s, t)
        )
        losses.append((ours - theirs).pow(2).mean())
    return total(losses)


def rkd(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Park et al., distances at 25 and angles at 50."""
    ours, theirs = _distances(student), _distances(teacher)
    ours, theirs = ours / ours[ours > 0].mean(), theirs / theirs[theirs > 0].mean()
    angles = F.smooth_l1_loss(_angles(student), _angles(teacher))
    return 25 * F.smooth_l1_loss(ours, theirs) + 50 * angles


def _distances(embedding: Tensor) -> Tensor:
    square = embedding.pow(2).sum(1)
    distances = square[:, None] + square[None] - 2 * embedding @ embedding.T
    distances = distances.clamp(min=1e-12).sqrt()
    return distances * (1 - torch.eye(len(embedding), dtype=embedding.dtype))


def _angles(embedding: Tensor) -> Tensor:
    directions = F.normalize(embedding[None] - embedding[:, None], dim=2)
    return torch.bmm(directions, directions.transpose(1, 2))


def pkt(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Passalis and Tefas."""
    p, q = _probabilities(student), _probabilities(teacher)
    return (q * torch.log((q + 1e-7) / (p + 1e-7))).mean()


def _probabilities(embedding: Tensor) -> Tensor:
    unit = embedding / (embedding.pow(2).sum(1, keepdim=True).sqrt() + 1e-7)
    similarity = (unit @ unit.T + 1) / 2
    return similarity / similarity.sum(1, keepdim=True)


def cc(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Peng et al., gamma = 0.4, to the second order."""
    return (_congruence(student) - _congruence(teacher)).pow(2).mean()


def _congruence(embedding: Tensor) -> Tensor:
    unit = F.normalize(embedding)
    cosine = unit @ unit.T
    return math.exp(-0.8) * (1 + 0.8 * cosine + 0.32 * cosine**2)


def cosine(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    """Alignment of directions, the student's embedding projected before."""
    return (1 - F.cosine_similarity(student, teacher)).mean()


class InfoNCE(nn.Module):
    """Oord et al., tau = 0.1, in the batch."""

    def __init__(self, student: Tensor, teacher: Tensor, known: Known) -> None:
        super().__init__()
        self.project = nn.Linear(student.shape[1], teacher.shape[1])

    def forward(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy of finding one's own teacher."""
        logits = F.normalize(self.project(student)) @ F.normalize(teacher).T / 0.1
        return F.cross_entropy(logits, torch.arange(len(student)))


class CRD(nn.Module):
    """Tian et al., tau = 0.07, 4096 negatives of other classes drawn once a batch."""

    of_student: Tensor
    of_teacher: Tensor
    classes: Tensor

    def __init__(self, student: Outputs, teacher: Outputs, known: Known) -> None:
        super().__init__()
        self.embed_student = nn.Linear(student.embedding.shape[1], 128)
        self.embed_teacher = nn.Linear(teacher.embedding.shape[1], 128)
        bound = math.sqrt(3 / 128)
        for name in ("of_student", "of_teacher"):
            rows = torch.empty(known.samples, 128).uniform_(-bound, bound)
            self.register_buffer(name, rows)
        self.register_buffer("classes", torch.full((known.samples,), -1))
        self.scales: dict[str, Tensor] = {}

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return both contrasts and remember the batch."""
        index = teacher.index
        assert index is not None
        ours = F.normalize(self.embed_student(student.embedding))
        theirs = F.normalize(self.embed_teacher(teacher.embedding))
        samples = len(self.classes)
        drawn = torch.randint(samples, (min(4096, samples - 1),))
        other = (self.classes[drawn][None] != target[:, None]).to(ours.dtype)
        loss = self._contrast("teacher", ours, self.of_teacher, index, drawn, other)
        loss = loss + self._contrast("student", theirs, self.of_student, index, drawn, other)
        with torch.no_grad():
            for rows, seen in ((self.of_student, ours), (self.of_teacher, theirs)):
                rows[index] = F.normalize(0.5 * rows[index] + 0.5 * seen)
            self.classes[index] = target
        return loss

    def _contrast(
        self, whose: str, seen: Tensor, rows: Tensor, index: Tensor, drawn: Tensor, other: Tensor
    ) -> Tensor:
        own = (seen * rows[index]).sum(1) / 0.07
        rest = seen @ rows[drawn].T / 0.07
        if whose not in self.scales:  # log of Z * K / N, from the first batch
            every = torch.cat([own, rest.flatten()]).detach()
            self.scales[whose] = every.exp().mean().log() + math.log(len(drawn))
        scale = self.scales[whose]
        missed = (-F.logsigmoid(scale - rest) * other).sum(1) / other.sum(1).clamp(min=1)
        return (-F.logsigmoid(own - scale) + len(drawn) * missed).mean()


def minilm(student: Maps, teacher: Maps, target: Tensor) -> Tensor:
    """Wang et al. (MiniLMv2), up to 12 relation heads."""
    losses = []
    for s, t in zip(student, teacher, strict=True):
        shared = math.gcd(s.shape[1] // 3, t.shape[1] // 3)
        heads = max(count for count in range(1, 13) if shared % count == 0)
        for ours, theirs in zip(s.chunk(3, dim=1), t.chunk(3, dim=1), strict=True):
            log_p = F.log_softmax(_relations(ours, heads), dim=-1).flatten(0, 2)
            q = F.softmax(_relations(theirs, heads), dim=-1).flatten(0, 2)
            losses.append(F.kl_div(log_p, q, reduction="batchmean"))
    return total(losses)


def _relations(maps: Tensor, heads: int) -> Tensor:
    batch, channels = maps.shape[:2]
    tokens = maps.reshape(batch, heads, channels // heads, -1).transpose(2, 3)
    return tokens @ tokens.transpose(2, 3) / math.sqrt(channels // heads)
