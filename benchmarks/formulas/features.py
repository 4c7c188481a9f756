"""Formulas on maps, and on what a network tells beside its logits."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.formulas.base import Known, Maps, total
from kdsearch.models.features import Outputs


def fitnet(student: Maps, teacher: Maps, target: Tensor) -> Tensor:
    """Romero et al., the student's maps adapted before."""
    return total(F.mse_loss(s, t) for s, t in zip(student, teacher, strict=True))


def at(student: Maps, teacher: Maps, target: Tensor) -> Tensor:
    """Zagoruyko and Komodakis, on maps of equal sizes."""
    pairs = zip(student, teacher, strict=True)
    return total((_attention(s) - _attention(t)).pow(2).mean() for s, t in pairs)


def _attention(maps: Tensor) -> Tensor:
    return F.normalize(maps.pow(2).mean(1).flatten(1))


def grad_cam(student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
    """Attention transfer on Grad-CAM (Selvaraju et al.), on maps of equal sizes."""
    score = student.logits.gather(1, teacher.logits.argmax(1, keepdim=True)).sum()
    (gradient,) = torch.autograd.grad(score, student.stages[-1], create_graph=True)
    assert teacher.gradient is not None
    ours = (gradient.mean((2, 3), keepdim=True) * student.stages[-1]).sum(1).flatten(1)
    weights = teacher.gradient.mean((2, 3), keepdim=True)
    theirs = (weights * teacher.stages[-1]).sum(1).flatten(1)
    return F.mse_loss(F.normalize(ours), F.normalize(theirs))


def cwd(student: Maps, teacher: Maps, target: Tensor) -> Tensor:
    """Shu et al., tau = 4."""
    losses = []
    for s, t in zip(student, teacher, strict=True):
        rows = s.shape[0] * s.shape[1]
        log_p = F.log_softmax(s.reshape(rows, -1) / 4, dim=1)
        q = F.softmax(t.reshape(rows, -1) / 4, dim=1)
        losses.append(16 * F.kl_div(log_p, q, reduction="batchmean"))
    return total(losses)


def pkd(student: Maps, teacher: Maps, target: Tensor) -> Tensor:
    """Cao et al."""
    losses = []
    for s, t in zip(student, teacher, strict=True):
        ours = (s - s.mean((0, 2, 3), keepdim=True)) / (s.std((0, 2, 3), keepdim=True) + 1e-6)
        theirs = (t - t.mean((0, 2, 3), keepdim=True)) / (t.std((0, 2, 3), keepdim=True) + 1e-6)
        losses.append(F.mse_loss(ours, theirs) / 2)
    return total(losses)


class VID(nn.Module):
    """Ahn et al., variances of 5 at first."""

    def __init__(self, student: Maps, teacher: Maps, known: Known) -> None:
        super().__init__()
        widths = [(s.shape[1], t.shape[1]) for s, t in zip(student, teacher, strict=True)]
        self.means = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(ours, theirs, 1, bias=False),
                nn.ReLU(),
                nn.Conv2d(theirs, theirs, 1, bias=False),
                nn.ReLU(),
                nn.Conv2d(theirs, theirs, 1, bias=False),
            )
            for ours, theirs in widths
        )
        start = math.log(math.exp(5 - 1e-5) - 1)
        self.scales = nn.ParameterList(torch.full((theirs,), start) for _, theirs in widths)

    def forward(self, student: Maps, teacher: Maps, target: Tensor) -> Tensor:
        """Return the negative log-likelihood without its constant."""
        losses = []
        for mean, scale, s, t in zip(self.means, self.scales, student, teacher, strict=True):
            variance = (F.softplus(scale) + 1e-5).view(1, -1, 1, 1)
            losses.append(0.5 * ((mean(s) - t).pow(2) / variance + variance.log()).mean())
        return total(losses)


class MGD(nn.Module):
    """Yang et al., 15 % of the channels masked."""

    def __init__(self, student: Maps, teacher: Maps, known: Known) -> None:
        super().__init__()
        self.generators = nn.ModuleList(_generator(t.shape[1]) for t in teacher)

    def forward(self, student: Maps, teacher: Maps, target: Tensor) -> Tensor:
        """Return the error of the generated maps."""
        losses = []
        for generate, s, t in zip(self.generators, student, teacher, strict=True):
            mask = torch.rand(*s.shape[:2], 1, 1, dtype=s.dtype) >= 0.15
            losses.append(F.mse_loss(generate(s * mask), t))
        return total(losses)


class ViTKD(nn.Module):
    """Yang et al., half of the positions masked, generation at 0.1."""

    def __init__(self, student: Maps, teacher: Maps, known: Known) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, teacher[-1].shape[1], 1, 1))
        self.generate = _generator(teacher[-1].shape[1])

    def forward(self, student: Maps, teacher: Maps, target: Tensor) -> Tensor:
        """Return the mimicry of the first two pairs and the generation of the last."""
        shallow = list(zip(student[:-1], teacher[:-1], strict=True))[:2]
        near = total(F.mse_loss(s, t) for s, t in shallow)
        s, t = student[-1], teacher[-1]
        batch, _, height, width = s.shape
        count = height * width // 2
        mask = torch.rand(batch, height * width).argsort(1) < count
        mask = mask.view(batch, 1, height, width).to(s.dtype)
        made: Tensor = self.generate(s * (1 - mask) + self.token * mask)
        missing = ((made - t).pow(2) * mask).sum() / (batch * count * s.shape[1])
        return near + 0.1 * missing


def _generator(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1),
    )


class ReviewKD(nn.Module):
    """Chen et al., on maps of equal sizes and a pooled pair."""

    def __init__(self, student: Maps, teacher: Maps, known: Known) -> None:
        super().__init__()
        width = min(512, student[-1].shape[1])
        widths = [(s.shape[1], t.shape[1]) for s, t in zip(student, teacher, strict=True)]
        enter, attend, leave = [], [], []
        for ours, theirs in widths:
            enter.append(_conv_norm(ours, width, 1))
            attend.append(nn.Conv2d(2 * width, 2, 1))
            leave.append(_conv_norm(width, theirs, 3))
        enter.append(_conv_norm(student[-1].shape[1], width, 1))
        leave.append(_conv_norm(width, teacher[-1].shape[1], 3))
        self.enter, self.leave = nn.ModuleList(enter), nn.ModuleList(leave)
        self.attend = nn.ModuleList(attend)

    def forward(self, student: Maps, teacher: Maps, target: Tensor) -> Tensor:
        """Return the hierarchical context loss over all fused maps."""
        deeper = self.enter[-1](F.adaptive_avg_pool2d(student[-1], 1))
        pooled = F.adaptive_avg_pool2d(teacher[-1], 1)
        losses = [_hierarchical(self.leave[-1](deeper), pooled)]
        for i in reversed(range(len(student))):
            x = self.enter[i](student[i])
            deeper = F.interpolate(deeper, x.shape[2:], mode="nearest")
            weights = torch.sigmoid(self.attend[i](torch.cat([x, deeper], dim=1)))
            deeper = x * weights[:, :1] + deeper * weights[:, 1:]
            losses.append(_hierarchical(self.leave[i](deeper), teacher[i]))
        return total(losses)


def _hierarchical(student: Tensor, teacher: Tensor) -> Tensor:
    loss = F.mse_loss(student, teacher)
    weight = total = 1.0
    for side in (4, 2, 1):
        if side >= student.shape[2]:
            continue
        s, t = F.adaptive_avg_pool2d(student, side), F.adaptive_avg_pool2d(teacher, side)
        weight /= 2
        loss = loss + weight * F.mse_loss(s, t)
        total += weight
    return loss / total


def _conv_norm(given: int, goal: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(given, goal, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(goal))


class SRRL(nn.Module):
    """Yang et al., the teacher's frozen head on the student's features."""

    def __init__(self, student: Outputs, teacher: Outputs, known: Known) -> None:
        super().__init__()
        self.weight, self.bias = known.head
        self.connect = _conv_norm(student.stages[-1].shape[1], teacher.embedding.shape[1], 1)
        if teacher.embedding.min() >= 0:
            self.connect.append(nn.ReLU())

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the errors of the embedding and of the logits."""
        embedding = self.connect(student.stages[-1]).mean((2, 3))
        logits = F.linear(embedding, self.weight, self.bias)
        return F.mse_loss(embedding, teacher.embedding) + F.mse_loss(logits, teacher.logits)


class OFA(nn.Module):
    """Hao et al., eps = 1."""

    def __init__(self, student: Outputs, teacher: Outputs, known: Known) -> None:
        super().__init__()
        classes = student.logits.shape[1]
        self.exits = nn.ModuleList(_exit(maps, classes) for maps in student.stages)

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the sum over the exits and the student's own logits."""
        own = F.one_hot(target, student.logits.shape[1])
        goal = (F.softmax(teacher.logits, dim=1) + own) ** 1.0 - own
        answers = [leave(maps) for leave, maps in zip(self.exits, student.stages, strict=True)]
        return total(
            -(goal * F.log_softmax(answer, dim=1)).sum(1).mean()
            for answer in [*answers, student.logits]
        )


class SelfDistill(nn.Module):
    """Zhang et al., T = 3, hints at 0.03."""

    def __init__(self, student: Outputs, teacher: Outputs | None, known: Known) -> None:
        super().__init__()
        classes = student.logits.shape[1]
        self.exits = nn.ModuleList(_exit(maps, classes) for maps in student.stages[:-1])
        widths = [leave[-1].in_features for leave in self.exits]  # type: ignore[index]
        goal = student.stages[-1].shape[1]
        self.hints = nn.ModuleList(nn.Linear(width, goal) for width in widths)

    def forward(self, student: Outputs, teacher: Outputs | None, target: Tensor) -> Tensor:
        """Return labels, soft labels and hints over all exits."""
        q = F.softmax(student.logits.detach() / 3, dim=1)
        deepest = student.stages[-1].detach().mean((2, 3))
        losses = []
        for leave, hint, maps in zip(self.exits, self.hints, student.stages[:-1], strict=True):
            features = leave[:-1](maps)  # type: ignore[index]
            logits = leave[-1](features)  # type: ignore[index]
            soft = F.kl_div(F.log_softmax(logits / 3, dim=1), q, reduction="batchmean")
            near = F.mse_loss(hint(features), deepest)
            losses.append(F.cross_entropy(logits, target) + 9 * soft + 0.03 * near)
        return total(losses)


def _exit(maps: Tensor, classes: int) -> nn.Sequential:
    """Return separable convolutions down to 4x4, the average, and a linear layer."""
    given, side = maps.shape[1:3]
    layers: list[nn.Module] = []
    for _ in range(max(1, math.ceil(math.log2(side / 4)))):
        stride = 2 if side > 4 else 1
        goal = stride * given
        layers += [
            nn.Conv2d(given, given, 3, stride, padding=1, groups=given, bias=False),
            nn.Conv2d(given, goal, 1, bias=False),
            nn.BatchNorm2d(goal),
            nn.ReLU(),
        ]
        given, side = goal, side // stride
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(given, classes))
