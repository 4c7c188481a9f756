"""The terms of a training loss: each a method between a student and its teachers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from kdsearch.errors import SpecError
from kdsearch.methods.base import DistillLoss, Setting
from kdsearch.models.features import Outputs
from kdsearch.tasks import Task
from kdsearch.training.distiller.adapters import Side, adapted_losses
from kdsearch.training.distiller.coverage import serves
from kdsearch.training.distiller.recipe import Recipe, TermSpec

_ORDER = ("stages", "attention", "outputs", "embedding", "logits")


class Term(nn.Module):
    """One summand of the loss: a method, or one of its pairs of stages, with each teacher.

    losses: one for each teacher compared with. teachers: the places of these teachers in the
    tuple (ensemble, first teacher, second teacher, ...); None without a teacher. window: the part
    of the training, in [0, 1], in which the term is active.
    """

    def __init__(
        self,
        spec: TermSpec,
        teachers: Sequence[int | None],
        losses: Sequence[nn.Module],
        *,
        moves_temperature: bool,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.name = spec.name
        self.window = (0.0, 1.0)
        self.compares_logits = spec.method.need == "logits"
        self.teaches_logits = "logits" in spec.reads and spec.weight > 0
        self.teachers = teachers
        self.losses = nn.ModuleList(losses)
        self._temperature = spec.temperature if moves_temperature else None

    def factor(self, progress: float) -> float:
        """Return the scheduled factor on the weight; 0 outside the term's window."""
        since, until = self.window
        is_inside = since <= progress < until or until == 1.0 <= progress
        return self.spec.schedule(progress) if is_inside else 0.0

    def forward(
        self,
        student: Outputs,
        teachers: Sequence[Outputs],
        target: Tensor,
        *,
        shares: Tensor | None,
        temperature_scale: float | Tensor,
    ) -> Tensor:
        """Return the unweighted loss, averaged over the teachers by their shares [B, T]."""
        if self._temperature is not None:
            for loss in self.modules():
                if isinstance(loss, DistillLoss):
                    temperature = 1 + (self._temperature - 1) * temperature_scale
                    setattr(loss, "temperature", temperature)  # noqa: B010
        values = [
            loss(student, None if place is None else teachers[place], target)
            for place, loss in zip(self.teachers, self.losses, strict=True)
        ]
        if len(values) == 1 or shares is None:
            return torch.stack(values).sum()
        mean = shares.mean(dim=0)
        if len(values) < len(mean):  # the other teachers do not know what is compared
            own = mean[[place - 1 for place in self.teachers if place is not None]]
            mean = own / own.sum()
        return (torch.stack(values) * mean).sum()


def _compared_with(
    spec: TermSpec, teachers: Sequence[Side]
) -> list[tuple[int | None, Side | None]]:
    """Return the places and sides of the teachers that a term compares with.

    On logits of all classes it is their ensemble, at place 0; else each that knows enough. The mean
    of the divergences from each has the same gradient as the divergence from their mean.
    """
    are_whole = all(side.classes is None for side in teachers)
    if len(teachers) == 1 or (spec.method.need == "logits" and are_whole):
        return [(0, teachers[0])]
    if spec.method.need == "logits" and any(side.outputs.logits.ndim > 2 for side in teachers):
        raise SpecError(
            f"method {spec.name!r}: of several teachers at each position, all have to know all "
            "classes; --teacher-epochs 5 fits them to these classes, or give one teacher"
        )
    each = enumerate(teachers, start=1)
    return [(place, side) for place, side in each if serves(spec.method, side)]


def build_terms(
    recipe: Recipe, student: Side, teachers: Sequence[Side], setting: Setting, task: Task
) -> list[Term]:
    """Return the terms of a recipe; in progressive order each has a window of the training.

    Raises SpecError for outputs that cannot be compared.
    """
    is_progressive = recipe.order == "progressive"
    moves = recipe.temperature_schedule.kind != "constant"
    found: list[tuple[int, float, Term]] = []
    for spec in recipe.terms:
        sides: list[tuple[int | None, Side | None]] = [(None, None)]
        if spec.method.reads:
            sides = _compared_with(spec, teachers)
        by_teacher = [
            adapted_losses(
                spec, *_compared(spec, student, side, task), setting, split_pairs=is_progressive
            )
            for _, side in sides
        ]
        if len({len(losses) for losses in by_teacher}) > 1:
            raise SpecError(
                f"method {spec.name!r} in progressive order: the teachers' stages make different "
                "numbers of pairs; give method.mapping as pairs"
            )
        places = [place for place, _ in sides]
        for losses in zip(*by_teacher, strict=True):
            term = Term(spec, places, [loss for _, loss in losses], moves_temperature=moves)
            depth = max(depth for depth, _ in losses)
            need = "logits" if spec.is_on_logits else spec.method.need
            found.append((_ORDER.index(need), depth, term))
    terms = [term for _, _, term in sorted(found, key=lambda item: item[:2])]
    if is_progressive:
        for i, term in enumerate(terms):
            term.window = (i / len(terms), (i + 1) / len(terms))
    return terms


def _compared(
    spec: TermSpec, student: Side, teacher: Side | None, task: Task
) -> tuple[Side, Side | None]:
    """Return the two sides as a term compares them: logits as rows of classes."""
    if spec.method.need != "logits":
        return student, teacher
    theirs = None if teacher is None else teacher.outputs
    mine, other, _ = task.rows(student.outputs, theirs, None)
    if teacher is not None and other is not None:
        teacher = replace(teacher, outputs=other)
    return replace(student, outputs=mine), teacher
