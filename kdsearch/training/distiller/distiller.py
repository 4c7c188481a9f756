"""The loss of a student that is taught: the task's, and the terms of its recipe.

loss = (1 - alpha) * task + alpha * sum of weight * term, each factor on its schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kdsearch.errors import SpecError
from kdsearch.methods.base import DistillLoss, Setting
from kdsearch.models.features import Outputs
from kdsearch.spec import DistillSpec
from kdsearch.tasks import Task
from kdsearch.training.distiller.adapters import Side, bodies
from kdsearch.training.distiller.loss_balance import GradNorm, Uncertainty
from kdsearch.training.distiller.recipe import Recipe, Term, resolve
from kdsearch.training.distiller.teacher_ensemble import Blend

_ORDER = ("stages", "attention", "outputs", "embedding", "logits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """What the schedules say at one moment of a training.

    is_open: whether the task, and each part, is heard at all. share: weight of the task. factors:
    of each part's weight, alpha included. warmth: how much of its temperature is left to a term.
    These are numbers, or 0-d tensors that a captured step reads and the next step overwrites.
    """

    is_open: tuple[bool, ...]
    share: float | Tensor
    factors: Sequence[float | Tensor]
    warmth: float | Tensor = 1.0

    @property
    def numbers(self) -> list[float | Tensor]:
        """Return all that moves, in the order of `on`."""
        return [self.share, self.warmth, *self.factors]

    def on(self, numbers: Sequence[Tensor]) -> Pace:
        """Return the same, read from tensors."""
        share, warmth, *factors = numbers
        return replace(self, share=share, factors=factors, warmth=warmth)


class Distiller(nn.Module):
    """The loss of a student that is taught as a `DistillSpec` says.

    teachers: any number; each has adapters and pairs of stages of its own. A term on logits hears
    the blend of all teachers; another one hears each, weighed by its mean weight in the batch.
    A student with a distillation token learns the labels by its class head and the teacher's
    logits by the other (Touvron et al., ICML 2021, 2012.12877), while a term on them is heard.
    need: the parts of each teacher's outputs that the terms read; student_need: those of the
    student's that it shows only when asked.
    Raises SpecError for whatever `check` refuses and for outputs that cannot be compared.
    """

    def __init__(
        self,
        spec: DistillSpec,
        *,
        task: Task,
        student: Side,
        teachers: Sequence[Side] = (),
        setting: Setting | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.task = task
        self.recipe: Recipe = resolve(spec)
        self.label_smoothing = label_smoothing
        terms = self.recipe.terms
        self.need = _need(terms, teachers)
        asked = {term.method.need for term in terms} & {"attention"}
        self.student_need: frozenset[str] = frozenset({"logits"}) | asked
        if self.need and not teachers:
            raise SpecError(f"method {spec.method!r} needs a teacher; 'none' learns without one")
        self.hears_labels = any(term.method.labels != "unused" for term in terms)
        if self.hears_labels or any("logits" in term.method.hears for term in terms):
            task.rows(student.outputs, None, None)  # refuses a task without classes
        self.blend: Blend | None = None
        if self.need and (len(teachers) > 1 or spec.teacher_shares()):
            width = student.outputs.embedding.shape[1]
            self.blend = Blend(spec, task, teachers=len(teachers), embedding=width)
        if len(teachers) == 1 and spec.teachers in ("confidence", "learned"):
            raise SpecError(
                f"method.teachers: {spec.teachers!r} shares between several teachers; there is one"
            )
        parts = _parts(self.recipe, student, teachers, setting or Setting())
        self.parts = nn.ModuleList(parts)
        self.uncertainty = Uncertainty(1 + len(parts)) if spec.balance == "uncertainty" else None
        self.gradnorm = GradNorm(len(parts)) if spec.balance == "gradnorm" and parts else None
        self.to(student.outputs.logits.device)

    @property
    def needs_teacher(self) -> bool:
        """Whether `forward` must be given the teachers' outputs."""
        return bool(self.need)

    def forward(
        self,
        student: Outputs,
        teachers: Sequence[Outputs],
        target: Tensor,
        *,
        pace: Pace | None = None,
    ) -> dict[str, Tensor]:
        """Return `task`, each term by its method's name, unweighted, and the whole `loss`.

        target: [B] class indices, -1 for an unlabelled image, or [B, K] probabilities of mixed
        ones. pace: what the schedules say now; by default what they say at the start.
        """
        if self.needs_teacher and not teachers:
            raise SpecError("the distiller was given no teacher's outputs")
        pace = pace or self.pace(0.0)
        answers = student
        if student.heads and any(map(_teaches_logits, self._parts, pace.is_open[1:])):
            answers = replace(student, logits=student.heads[0])
            student = replace(student, logits=student.heads[1])
        task = self.task.loss(answers, target, smoothing=self.label_smoothing)
        named = {"task": task}
        extra = task.new_zeros(())
        weights: Tensor | None = None
        heard: tuple[Outputs, ...] = tuple(teachers[:1])
        if self.blend is not None:
            logits = torch.stack([teacher.logits for teacher in teachers], dim=1)
            weights = self.blend(student.embedding, logits, target)
            if self.blend.gate is not None:
                common = self.task.blend(weights, logits.detach())
                named["gate"] = extra = self.task.loss(replace(student, logits=common), target)
            weights = weights.detach()
            heard = (replace(teachers[0], logits=self.task.blend(weights, logits)), *teachers)
        if self.hears_labels and heard:
            target = self.task.labelled_by(target, heard[0])
        values = []
        for part, is_open in zip(self._parts, pace.is_open[1:], strict=True):
            value = task.new_zeros(())
            if is_open:
                given = student, heard, target
                if part.compares_classes:
                    given = self._rows(student, heard, target)
                value = part(*given, weights=weights, warmth=pace.warmth)
            named[part.name] = named.get(part.name, task.new_zeros(())) + value
            values.append(value)
        return named | {"loss": extra + self._sum(pace, task, values, student)}

    def pace(self, progress: float) -> Pace:
        """Return what the schedules say when so much of the training is done, in [0, 1]."""
        alpha = self.recipe.alpha * self.recipe.alpha_schedule(progress)
        factors = [alpha * part.factor(progress) for part in self._parts]
        return Pace(
            is_open=tuple(factor != 0 for factor in (1 - alpha, *factors)),
            share=1 - alpha,
            factors=factors,
            warmth=self.recipe.temperature_schedule(progress),
        )

    def _rows(
        self, student: Outputs, heard: tuple[Outputs, ...], target: Tensor
    ) -> tuple[Outputs, tuple[Outputs, ...], Tensor]:
        """Return rows of class logits of the student and of the first teacher, and their target."""
        mine, theirs, rows = self.task.rows(student, heard[0] if heard else None, target)
        assert rows is not None
        return mine, () if theirs is None else (theirs, *heard[1:]), rows

    @property
    def _parts(self) -> list[_Part]:
        return [part for part in self.parts if isinstance(part, _Part)]

    def _sum(self, pace: Pace, task: Tensor, values: list[Tensor], student: Outputs) -> Tensor:
        """Return the balanced sum of the task and the terms."""
        scales: Sequence[float | Tensor] = [part.weight for part in self._parts]
        if self.gradnorm is not None:
            shared = student.stages[0] if student.stages else student.embedding
            found = self.gradnorm(task, values, shared)
            scales = [
                found[i] * part.weight / part.usual_weight for i, part in enumerate(self._parts)
            ]
        summands = [pace.share * task]
        summands += [
            factor * scale * value
            for factor, scale, value in zip(pace.factors, scales, values, strict=True)
        ]
        if self.uncertainty is not None:
            balanced: Tensor = self.uncertainty(
                [
                    summand if heard else None
                    for heard, summand in zip(pace.is_open, summands, strict=True)
                ]
            )
            return balanced
        return torch.stack(summands).sum()


def _teaches_logits(part: _Part, is_open: bool) -> bool:
    return bool("logits" in part.hears and is_open and part.weight)


class _Part(nn.Module):
    """A term, or one pair of a term, between the student and all teachers that it hears.

    heard: for each body the place of its teacher in what the Distiller gives, None for none.
    """

    def __init__(
        self,
        term: Term,
        heard: Sequence[int | None],
        modules: Sequence[nn.Module],
        *,
        warms: bool,
    ) -> None:
        super().__init__()
        self.name = term.name
        self.hears = term.method.hears
        self.compares_classes = term.method.need == "logits"
        self.weight = term.weight
        self.usual_weight = term.method.weight
        self.schedule = term.schedule
        self.window = (0.0, 1.0)
        self.heard = heard
        self.bodies = nn.ModuleList(modules)
        self._temperature = term.temperature if warms else None

    def factor(self, progress: float) -> float:
        """Return what multiplies the weight; 0 outside of the part's window."""
        since, until = self.window
        is_open = since <= progress < until or until == 1.0 <= progress
        return self.schedule(progress) if is_open else 0.0

    def forward(
        self,
        student: Outputs,
        heard: Sequence[Outputs],
        target: Tensor,
        *,
        weights: Tensor | None,
        warmth: float | Tensor,
    ) -> Tensor:
        """Return the unweighted loss, averaged over the teachers at their weights [B, T]."""
        if self._temperature is not None:
            for loss in self.modules():
                if isinstance(loss, DistillLoss):
                    setattr(loss, "temperature", 1 + (self._temperature - 1) * warmth)  # noqa: B010
        values = [
            body(student, None if place is None else heard[place], target)
            for place, body in zip(self.heard, self.bodies, strict=True)
        ]
        if len(values) == 1 or weights is None:
            return torch.stack(values).sum()
        return (torch.stack(values) * weights.mean(dim=0)).sum()


def _parts(
    recipe: Recipe, student: Side, teachers: Sequence[Side], setting: Setting
) -> list[_Part]:
    """Return the parts of all terms; progressive ones each with a window of the training."""
    found: list[tuple[int, float, _Part]] = []
    for term in recipe.terms:
        rank = _ORDER.index(term.method.need)
        sides: list[tuple[int | None, Side | None]] = [(None, None)]
        if term.method.hears:
            many = len(teachers) > 1 and term.method.need != "logits"
            sides = list(enumerate(teachers, start=1)) if many else [(0, teachers[0])]
        apart = recipe.order == "progressive"
        by_side = [bodies(term, student, side, setting, apart=apart) for _, side in sides]
        places = [place for place, _ in sides]
        if len({len(made) for made in by_side}) > 1:
            raise SpecError(
                f"method {term.name!r} in progressive order: the teachers' stages make different "
                "numbers of pairs; give method.mapping as pairs"
            )
        for made in zip(*by_side, strict=True):
            depth = max(depth for depth, _ in made)
            part = _Part(term, places, [body for _, body in made], warms=recipe.warms)
            found.append((rank, depth, part))
    found.sort(key=lambda item: item[:2])
    parts = [part for _, _, part in found]
    if recipe.order == "progressive":
        for i, part in enumerate(parts):
            part.window = (i / len(parts), (i + 1) / len(parts))
    return parts


def _need(terms: Sequence[Term], teachers: Sequence[Side]) -> frozenset[str]:
    """Return the parts of the teachers' outputs that are read."""
    need: set[str] = {part for term in terms for part in term.method.hears}
    if "attention" in need and not all(side.outputs.attention for side in teachers):
        need.add("stages")
    return frozenset(need)
