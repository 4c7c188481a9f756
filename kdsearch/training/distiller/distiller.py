"""The training loss of a student: the task's loss and the terms of its recipe.

loss = (1 - alpha) * task + alpha * sum of weight * term, each factor on its schedule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from kdsearch.errors import SpecError
from kdsearch.methods.base import Setting
from kdsearch.models.features import Outputs
from kdsearch.spec import DistillSpec
from kdsearch.tasks import Task
from kdsearch.training.distiller.adapters import Side
from kdsearch.training.distiller.coverage import check_teachers
from kdsearch.training.distiller.loss_balance import GradNorm, Uncertainty
from kdsearch.training.distiller.recipe import Recipe, needed_features, resolve
from kdsearch.training.distiller.teacher_ensemble import TeacherEnsemble
from kdsearch.training.distiller.terms import Term, build_terms


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """The scheduled factors at one step of a training.

    active: for the task and each term, True if its weight is not 0. task: weight of the task.
    terms: alpha times the scheduled factor of each term. temperature_scale: factor on T - 1.
    Values are numbers, or 0-d tensors that a captured step reads and the next step overwrites.
    """

    active: tuple[bool, ...]
    task: float | Tensor
    terms: Sequence[float | Tensor]
    temperature_scale: float | Tensor = 1.0

    @property
    def are_terms_active(self) -> bool:
        """Return whether any term has a weight, so that outputs of teachers are read."""
        return any(self.active[1:])

    @property
    def values(self) -> list[float | Tensor]:
        """Return all scheduled values in the order of `with_values`."""
        return [self.task, self.temperature_scale, *self.terms]

    def with_values(self, values: Sequence[Tensor]) -> LossWeights:
        """Return the same weights with their values read from tensors."""
        task, scale, *terms = values
        return replace(self, task=task, terms=terms, temperature_scale=scale)


class Distiller(nn.Module):
    """The loss of a student under a `DistillSpec`, with the adapters that it trains.

    teachers: any number; each has adapters and pairs of stages of its own. A term on logits
    compares with the ensemble of all teachers; other terms compare with each teacher and are
    averaged by the teachers' mean weights in the batch. While a term on logits is active, a student
    with a distillation token learns the labels by its class head and the teacher's logits by the
    other head (Touvron et al., ICML 2021, 2012.12877).
    needed_features: the features of each teacher that the terms read. student_features: those that
    the student has to return on request. Raises SpecError for recipes that `check` refuses and for
    outputs that cannot be compared.
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
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.task = task
        self.recipe: Recipe = resolve(spec)
        self.label_smoothing = label_smoothing
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)
        for term in self.recipe.terms:
            if reason := term.method.unfit_for(task.name):
                raise SpecError(f"method {term.name!r} is not for {task.name}: {reason}")
        methods = [term.method for term in self.recipe.terms]
        self.needed_features = needed_features(spec)
        if not all(side.outputs.attention for side in teachers):
            self.needed_features |= {"stages"} if "attention" in self.needed_features else set()
        by_attention = {method.need for method in methods} & {"attention"}
        self.student_features = frozenset({"logits"} | by_attention)
        if self.needed_features and not teachers:
            raise SpecError(f"method {spec.method!r} needs a teacher; 'none' learns without one")
        known = [side.classes for side in teachers]
        self.are_whole = all(classes is None for classes in known)
        has_logits = all(side.gives_logits for side in teachers)
        self.blends = self.are_whole and has_logits and self.needed_features != {"boxes"}
        if self.needed_features and teachers:
            check_teachers(spec.method, teachers)
        self.uses_labels = any(method.labels != "unused" for method in methods)
        general = [method for method in methods if not method.tasks]
        if any(method.labels != "unused" or "logits" in method.reads for method in general):
            task.rows(student.outputs, None, None)  # refuses a task without classes
        self.ensemble: TeacherEnsemble | None = None
        if self.needed_features and (len(teachers) > 1 or spec.teacher_shares()):
            width = student.outputs.embedding.shape[1]
            self.ensemble = TeacherEnsemble(spec, task, teachers=len(teachers), embedding=width)
        if len(teachers) == 1 and spec.teachers in ("confidence", "learned"):
            raise SpecError(
                f"method.teachers: {spec.teachers!r} shares between several teachers; there is one"
            )
        if not self.blends and spec.teachers in ("confidence", "learned"):
            raise SpecError(
                f"method.teachers: {spec.teachers!r} compares answers for all classes, which not "
                "every teacher gives; use equal, or fixed shares"
            )
        terms = build_terms(self.recipe, student, teachers, setting or Setting(), task)
        self.terms = nn.ModuleList(terms)
        count = len(self.terms)
        self.uncertainty = Uncertainty(1 + count) if spec.balance == "uncertainty" else None
        self.gradnorm = GradNorm(count) if spec.balance == "gradnorm" and count else None
        self.to(student.outputs.logits.device)

    @property
    def needs_teacher(self) -> bool:
        """True if `forward` needs the teachers' outputs."""
        return bool(self.needed_features)

    def weights_at(self, progress: float, *, is_taught: bool = True) -> LossWeights:
        """Return the scheduled weights at a progress of the training in [0, 1].

        is_taught: False after the end of distillation, where the task alone has a weight.
        """
        alpha = self.recipe.alpha * self.recipe.alpha_schedule(progress) * is_taught
        factors = [alpha * term.factor(progress) for term in self._terms]
        return LossWeights(
            active=tuple(factor != 0 for factor in (1 - alpha, *factors)),
            task=1 - alpha,
            terms=factors,
            temperature_scale=self.recipe.temperature_schedule(progress),
        )

    def scales(self, losses: Mapping[str, float], progress: float) -> dict[str, float]:
        """Return the task's loss and each term times its weight, of a step's or epoch's `losses`.

        Without alpha, which states the share of each side. Only those that are active; none where
        `method.balance` sets the weights.
        """
        if self.uncertainty is not None or self.gradnorm is not None:
            return {}
        is_on, *are_on = self.weights_at(progress).active
        found = {"task": losses["task"]} if is_on else {}
        for term, is_active in zip(self._terms, are_on, strict=True):
            if is_active:
                found[term.name] = term.factor(progress) * term.spec.weight * losses[term.name]
        return found

    def forward(
        self,
        student: Outputs,
        teachers: Sequence[Outputs],
        target: Tensor,
        *,
        weights: LossWeights | None = None,
    ) -> dict[str, Tensor]:
        """Return `task`, each term by its method's name, unweighted, and the whole `loss`.

        teachers: not read where no term is active. target: [B] class indices, -1 for an unlabelled
        image, or [B, K] probabilities of mixed ones. weights: by default those at the start of the
        training.
        """
        weights = weights or self.weights_at(0.0)
        if not weights.are_terms_active:
            teachers = ()
        elif self.needs_teacher and not teachers:
            raise SpecError("the distiller was given no teacher's outputs")
        by_class_head, student = self._heads(student, weights)
        weighed = {} if self.class_weights is None else {"class_weights": self.class_weights}
        task = self.task.loss(by_class_head, target, smoothing=self.label_smoothing, **weighed)
        losses = {"task": task}
        shares: Tensor | None = None
        common = tuple(teachers[:1])  # what terms on logits compare with; then each teacher
        ensemble = self.ensemble if teachers else None
        if ensemble is not None and not self.blends:
            shares = ensemble.shares.expand(len(student.logits), -1)
            common = (teachers[0], *teachers)
        elif ensemble is not None:
            logits = self.task.stacked([teacher.logits for teacher in teachers])
            shares = ensemble(student.embedding, logits, target)
            if ensemble.gate is not None:
                mixed = replace(student, logits=self.task.blend(shares, logits.detach()))
                losses["gate"] = self.task.loss(mixed, target)
            shares = shares.detach()
            common = (replace(teachers[0], logits=self.task.blend(shares, logits)), *teachers)
        if self.uses_labels and common and self.are_whole:
            target = self.task.labelled_by(target, common[0])
        values = []
        for term, is_active in zip(self._terms, weights.active[1:], strict=True):
            value = task.new_zeros(())
            if is_active:
                rows = student, common, target
                if term.compares_logits:
                    rows = self._class_rows(student, common, target)
                value = term(*rows, shares=shares, temperature_scale=weights.temperature_scale)
            losses[term.name] = losses.get(term.name, task.new_zeros(())) + value
            values.append(value)
        total = self._sum(weights, task, values, student)
        return losses | {"loss": losses.get("gate", task.new_zeros(())) + total}

    def _heads(self, student: Outputs, weights: LossWeights) -> tuple[Outputs, Outputs]:
        """Return the outputs that learn the labels and those that learn from the teacher."""
        active = zip(self._terms, weights.active[1:], strict=True)
        if student.heads and any(is_active and term.teaches_logits for term, is_active in active):
            by_class_head, by_other_head = student.heads
            return replace(student, logits=by_class_head), replace(student, logits=by_other_head)
        return student, student

    def _class_rows(
        self, student: Outputs, teachers: tuple[Outputs, ...], target: Tensor
    ) -> tuple[Outputs, tuple[Outputs, ...], Tensor]:
        """Return rows of class logits of the student and of the first teacher, and their target."""
        mine, theirs, rows = self.task.rows(student, teachers[0] if teachers else None, target)
        assert rows is not None
        return mine, () if theirs is None else (theirs, *teachers[1:]), rows

    @property
    def _terms(self) -> list[Term]:
        return [term for term in self.terms if isinstance(term, Term)]

    def _sum(
        self, weights: LossWeights, task: Tensor, values: list[Tensor], student: Outputs
    ) -> Tensor:
        """Return the balanced sum of the task and the terms."""
        scales: Sequence[float | Tensor] = [term.spec.weight for term in self._terms]
        if self.gradnorm is not None:
            shared = student.stages[0] if student.stages else student.embedding
            found = self.gradnorm(task, values, shared)
            specs = [term.spec for term in self._terms]
            scales = [found[i] * s.weight / s.method.weight for i, s in enumerate(specs)]
        summands = [weights.task * task]
        summands += [
            factor * scale * value
            for factor, scale, value in zip(weights.terms, scales, values, strict=True)
        ]
        if self.uncertainty is None:
            return torch.stack(summands).sum()
        active = zip(summands, weights.active, strict=True)
        balanced: Tensor = self.uncertainty([loss if is_on else None for loss, is_on in active])
        return balanced
