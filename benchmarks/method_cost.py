"""What a method's step costs beside the same step with its formula written straight-line.

One training step on prepared teacher's outputs: student, task and loss, backward, optimiser. Ours
goes through the Distiller with its adapters; the peer is what a script would hold (see formulas).
Both start from the same weights and must agree in the loss before they are timed, on one thread.
Status 1: a method's step is above 1.3x its formula's.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import formulas
from benchmarks.formulas.base import Known
from benchmarks.paired import Ratio, alternate
from kdsearch.methods import get
from kdsearch.methods.base import DistillLoss, Setting, Signal
from kdsearch.models.cifar_resnet import CifarResNet
from kdsearch.models.features import Outputs, Tapped, gradient_of, head_of
from kdsearch.models.probe import evaluating
from kdsearch.models.students.base import Student
from kdsearch.models.students.resnet import ResNet
from kdsearch.models.students.vit import ViT
from kdsearch.spec import DistillSpec
from kdsearch.tasks.classification import Classification
from kdsearch.training.distiller import Distiller, Side

BAR = 1.3
RESOLUTION, CLASSES, SAMPLES = 32, 10, 50_000
TRANSFORMERS = ("minilm", "vitkd")
_AGREE = 1e-5

Call: TypeAlias = Callable[[], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A student, what its teacher said of a batch, and the batch."""

    student: Student
    taught: Outputs
    head: tuple[Tensor, Tensor | None]
    images: Tensor
    target: Tensor

    def example(self) -> Outputs:
        """Return what the student says in evaluation mode."""
        with evaluating(self.student), torch.no_grad():
            return self.student.features(self.images)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A method's time over its formula's, by CPU and wall, and over that without a teacher."""

    ratio: Ratio
    wall_ratio: Ratio
    over_none: Ratio
    ms: float
    formula_ms: float
    none_ms: float


def cnn_pair(batch: int) -> Pair:
    """Return a `resnet` of 5 thousand parameters and a cifar_resnet56."""
    torch.manual_seed(0)
    sizes = {"in_channels": 3, "num_classes": CLASSES, "resolution": RESOLUTION}
    student = ResNet(**sizes, width=0.25, depth=3)
    teacher = Tapped(CifarResNet(56, CLASSES), in_channels=3, resolution=RESOLUTION)
    return _pair(student, teacher, batch)


def vit_pair(batch: int) -> Pair:
    """Return two transformers on a grid of 8 x 8, of 4 blocks at 64 and 6 at 96 channels."""
    torch.manual_seed(0)
    sizes = {"in_channels": 3, "num_classes": CLASSES, "resolution": RESOLUTION}
    return _pair(ViT(**sizes, width=0.25, depth=4), ViT(**sizes, width=0.5, depth=6), batch)


def _pair(student: Student, teacher: Student | Tapped, batch: int) -> Pair:
    images = torch.randn(batch, 3, RESOLUTION, RESOLUTION)
    said = gradient_of(teacher.eval().features(images.clone().requires_grad_()))
    head = head_of(teacher)
    assert head is not None
    return Pair(
        student=student,
        taught=replace(said.map(Tensor.detach), index=torch.arange(batch)),
        head=(head[0].detach(), None if head[1] is None else head[1].detach()),
        images=images,
        target=torch.randint(CLASSES, (batch,)),
    )


def signal(method: type[DistillLoss], outputs: Outputs) -> Signal:
    """Return the part of a network's outputs that a method compares."""
    found: Signal = outputs if method.need == "outputs" else getattr(outputs, method.need)
    return found


class Script(nn.Module):
    """The whole loss as a script holds it: adapters where channels differ, formula, sum.

    Both networks show equally many maps of equal sizes: the deepest are compared, or each with
    its like.
    """

    def __init__(self, name: str, pair: Pair) -> None:
        super().__init__()
        self.method = get(name)
        self.taught, self.target = pair.taught, pair.target
        maps = self.method.need in ("stages", "attention")
        self.shown = slice(-1, None) if maps and self.method.mapping == "last" else slice(None)
        self.adapters = nn.ModuleList(self._adapters(pair.example()))
        self.eval()
        with torch.no_grad():
            signals = self._signals(pair.example())
        known = Known(samples=SAMPLES, head=pair.head)
        self.formula = formulas.formula(name, *signals, known)
        self.train()

    def forward(self, student: Outputs) -> Tensor:
        """Return the loss of what the student said of the batch."""
        term = self.formula(*self._signals(student), self.target)
        task = F.cross_entropy(student.logits, self.target)
        return (1 - self.method.alpha) * task + self.method.alpha * self.method.weight * term

    def _adapters(self, student: Outputs) -> list[nn.Module]:
        if "channels" not in self.method.align:
            return []
        if self.method.need == "embedding":
            return [nn.Linear(student.embedding.shape[1], self.taught.embedding.shape[1])]
        pairs = zip(student.stages[self.shown], self.taught.stages[self.shown], strict=True)
        widths = [(s.shape[1], t.shape[1]) for s, t in pairs]
        return [nn.Sequential(nn.Conv2d(s, t, 1, bias=False), nn.BatchNorm2d(t)) for s, t in widths]

    def _signals(self, student: Outputs) -> tuple[Signal, Signal]:
        ours, theirs = (signal(self.method, side) for side in (student, self.taught))
        if isinstance(ours, tuple) and isinstance(theirs, tuple):
            ours, theirs = ours[self.shown], theirs[self.shown]
            if self.adapters:
                ours = [adapt(s) for adapt, s in zip(self.adapters, ours, strict=True)]
        for project in self.adapters if isinstance(ours, Tensor) else ():
            ours = project(ours)
        return ours, theirs


class Package(nn.Module):
    """The whole loss as kdsearch makes it."""

    def __init__(self, name: str, pair: Pair) -> None:
        super().__init__()
        self.distiller = Distiller(
            DistillSpec(method=name),
            task=Classification(),
            student=Side(outputs=pair.example(), resolution=RESOLUTION),
            teachers=[Side(outputs=pair.taught, resolution=RESOLUTION, head=pair.head)],
            setting=Setting(samples=SAMPLES, batch_size=len(pair.target)),
        )
        self.taught, self.target = [pair.taught], pair.target

    def forward(self, student: Outputs) -> Tensor:
        """Return the loss of what the student said of the batch."""
        loss: Tensor = self.distiller(student, self.taught, self.target)["loss"]
        return loss


def step_of(loss: nn.Module, pair: Pair) -> Call:
    """Return a training step of a copy of the student; it returns the loss.

    The learning rate leaves the weights where they are for as long as it is timed.
    """
    student = copy.deepcopy(pair.student).train()
    weights = [*student.parameters(), *loss.parameters()]
    optimizer = torch.optim.SGD(weights, lr=1e-9, momentum=0.9, nesterov=True)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        value: Tensor = loss(student.features(pair.images))
        torch.autograd.backward(value)
        optimizer.step()
        return value.detach()

    return step


def bare(loss: nn.Module, pair: Pair) -> Call:
    """Return the loss and its gradient alone, on maps that no student made."""
    said = pair.example()
    stages, attention = (
        tuple(found.clone().requires_grad_() for found in maps)
        for maps in (said.stages, said.attention)
    )
    head = copy.deepcopy(pair.student.get_submodule("head"))

    def run() -> Tensor:
        embedding = stages[-1].mean((2, 3))
        value: Tensor = loss(Outputs(head(embedding), embedding, stages, attention))
        torch.autograd.backward(value)
        return value.detach()

    return run


def compare(name: str, pair: Pair, make: Callable[[nn.Module, Pair], Call], seconds: float) -> Cost:
    """Return what a method costs, its formula, and no teacher at all, timed alternately.

    Raises ValueError where the formula is not the method's.
    """
    calls = []
    values = []
    for kind, method in ((Package, name), (Script, name), (Package, "none")):
        torch.manual_seed(1)
        calls.append(make(kind(method, pair), pair))
        torch.manual_seed(2)
        values.append(calls[-1]().item())
    if not math.isclose(values[0], values[1], rel_tol=_AGREE):
        raise ValueError(f"{name}: the loss is {values[0]}, that of its formula {values[1]}")
    times = alternate(calls, seconds=seconds)
    return Cost(
        ratio=times.ratio(0, 1),
        wall_ratio=times.ratio(0, 1, clock="wall"),
        over_none=times.ratio(0, 2),
        ms=times.ms(0),
        formula_ms=times.ms(1),
        none_ms=times.ms(2),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table, write JSON where asked, and return 1 when a step is above the bar."""
    given = _arguments().parse_args(argv)
    torch.set_num_threads(1)
    pairs = {"resnet": cnn_pair(given.batch), "vit": vit_pair(given.batch)}
    rows: dict[str, dict[str, object]] = {}
    over = []
    load = [round(os.getloadavg()[0], 1)]
    print(f"{'method':18} {'student':8} {'step / formula':>22} {'ms':>7} {'step / none':>22}")
    for name in given.methods or formulas.names():
        student = "vit" if name in TRANSFORMERS else "resnet"
        step = compare(name, pairs[student], step_of, given.seconds)
        rows[name] = {"student": student, "step": asdict(step)}
        line = f"{name:18} {student:8} {step.ratio!s:>22} {step.ms:7.2f} {step.over_none!s:>22}"
        if given.bare:
            alone = compare(name, pairs[student], bare, given.seconds)
            rows[name]["loss_alone"] = asdict(alone)
            line += f"  loss alone {alone.ratio} {alone.ms:.2f} ms"
        print(line, flush=True)
        over += [name] * (step.ratio.median > BAR)
    load.append(round(os.getloadavg()[0], 1))
    print(f"above {BAR}: {', '.join(over) or 'none'}; load {load[0]} to {load[1]}")
    if given.json:
        told = {
            "what": "CPU time of a training step with a method over that with its formula written "
            "straight-line: median over 30 alternating blocks, quartiles",
            "bar": BAR,
            "above": over,
            "batch": given.batch,
            "resolution": RESOLUTION,
            "pairs": {
                "resnet": "width 0.25, depth 3, taught by cifar_resnet56",
                "vit": "width 0.25, depth 4, taught by vit width 0.5, depth 6",
            },
            "machine": f"{platform.machine()}, 1 thread, torch {torch.__version__}",
            "load": load,
            "methods": rows,
        }
        given.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return 1 if over else 0


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="method_cost", description=__doc__)
    parser.add_argument("methods", nargs="*", help="all, where none is named")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each comparison")
    parser.add_argument("--bare", action="store_true", help="time the loss without a student too")
    parser.add_argument("--json", type=Path)
    return parser
