"""From a recipe to a training loss: terms, adapters, pairs of stages and weights in one module.

loss = (1 - alpha) * task + alpha * (weight * method [+ kd]). Adapters belong to training: they
learn with the student, are saved for resume, and are no part of its cost or its export.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.errors import SpecError, did_you_mean
from kdsearch.mapping import Pairs, check_mapping, pair_stages
from kdsearch.methods import METHODS
from kdsearch.methods.base import Align, DistillLoss, Signal
from kdsearch.spec import DistillSpec
from kdsearch.taps import Outputs
from kdsearch.tasks.classification import task_loss


def knobs_of(method: str) -> tuple[str, ...]:
    """Return the names of a method's own knobs. Raises SpecError when there is no such method."""
    return tuple(_arguments(METHODS.get(method)))


def check(spec: DistillSpec) -> None:
    """Raise SpecError when the recipe contradicts itself or its method; builds no network."""
    _resolve(spec)


class Distiller(nn.Module):
    """The loss of a student that is taught as a `DistillSpec` says.

    student, teacher: outputs of the two on one batch of any size, from which channels, sizes
    and classes are read; the adapters are made on the student's device. teacher may be None
    when the method hears none. *_resolution: sides of the two inputs, in pixels.
    need: what the teacher must deliver: logits, embedding, stages.
    Raises SpecError for whatever `check` refuses and for outputs that cannot be compared.
    """

    def __init__(
        self,
        spec: DistillSpec,
        *,
        student: Outputs,
        teacher: Outputs | None,
        student_resolution: int,
        teacher_resolution: int,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        recipe = _resolve(spec)
        self.alpha = recipe.alpha
        self.label_smoothing = label_smoothing
        self.terms = nn.ModuleList()
        self.need: frozenset[str] = frozenset(part.loss.need for part in recipe.parts)
        for part in recipe.parts:
            if teacher is None:
                raise SpecError(f"method {part.name!r} needs a teacher; 'none' learns without one")
            pairs: Pairs = []
            if part.loss.need == "stages":
                _check_stages(part.name, student, teacher)
                pairs = pair_stages(
                    recipe.mapping,
                    _strides(student, student_resolution),
                    _strides(teacher, teacher_resolution),
                )
            else:
                part.loss.check(*_heard(part.loss, student, teacher))
            self.terms.append(_Term(part, pairs, student, teacher))
        self.to(student.logits.device)

    @property
    def needs_teacher(self) -> bool:
        """Whether `forward` must be given the teacher's outputs."""
        return bool(self.need)

    def forward(
        self, student: Outputs, teacher: Outputs | None, target: Tensor
    ) -> dict[str, Tensor]:
        """Return `task`, each term by its method's name, unweighted, and their sum `loss`."""
        task = task_loss(student.logits, target, label_smoothing=self.label_smoothing)
        parts = {"task": task}
        loss = (1 - self.alpha) * task
        for term in self.terms:
            assert isinstance(term, _Term)
            if teacher is None:
                raise SpecError(f"method {term.name!r} was given no teacher's outputs")
            parts[term.name] = value = term(student, teacher, target)
            loss = loss + self.alpha * term.weight * value
        return parts | {"loss": loss}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One summand of the teacher's signal."""

    name: str
    weight: float
    loss: DistillLoss


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recipe:
    """A DistillSpec with every default filled in."""

    alpha: float
    mapping: str
    parts: tuple[_Part, ...]


def _resolve(spec: DistillSpec) -> _Recipe:
    """Fill in a method's defaults and refuse what it has no use for."""
    name = METHODS.canonical(spec.method)
    method = METHODS.get(name)
    knobs = dict(spec.knobs)
    known = _arguments(method)
    joins = False
    if spec.temperature is not None:
        if "temperature" in knobs:
            raise SpecError(f"method {name!r}: the temperature is given twice, also as a knob")
        joins = "temperature" not in known
        knobs |= {} if joins else {"temperature": spec.temperature}
    _check_knobs(name, knobs, known)
    if method.need == "nothing":
        _refuse_teaching(name, spec)
        return _Recipe(alpha=0.0, mapping=method.mapping, parts=())
    if method.need != "stages" and spec.mapping is not None:
        raise SpecError(
            f"method.mapping: {spec.mapping!r} is for methods that compare stages; "
            f"{name!r} compares {method.need}"
        )
    mapping = method.mapping if spec.mapping is None else spec.mapping
    check_mapping(mapping)
    weight = method.weight if spec.weight is None else spec.weight
    parts = [_Part(name=name, weight=weight, loss=method(**knobs))]
    if joins:
        kd = METHODS.get("kd")(temperature=spec.temperature)
        parts.append(_Part(name="kd", weight=1.0, loss=kd))
    alpha = method.alpha if spec.alpha is None else spec.alpha
    return _Recipe(alpha=alpha, mapping=mapping, parts=tuple(parts))


def _arguments(method: type[DistillLoss]) -> dict[str, bool]:
    """Return the constructor's own arguments and whether each must be given."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: argument.default is inspect.Parameter.empty
        for name, argument in inspect.signature(method).parameters.items()
        if argument.kind in named
    }


def _check_knobs(name: str, given: Collection[str], known: Mapping[str, bool]) -> None:
    unknown = [f"{knob!r}{did_you_mean(knob, known)}" for knob in given if knob not in known]
    missing = [repr(knob) for knob, is_needed in known.items() if is_needed and knob not in given]
    problems = [
        f"{what} {', '.join(found)}"
        for what, found in (("unknown knob", unknown), ("missing knob", missing))
        if found
    ]
    if problems:
        accepted = ", ".join(known) or "no knobs of its own"
        raise SpecError(f"method {name!r}: {'; '.join(problems)}; it accepts {accepted}")


def _refuse_teaching(name: str, spec: DistillSpec) -> None:
    """Refuse settings of a teacher's signal under the method that has none."""
    given = {
        key: value
        for key in ("alpha", "weight", "temperature", "mapping")
        if (value := getattr(spec, key)) not in (None, 0)
    }
    if given:
        listed = ", ".join(f"method.{key} = {value!r}" for key, value in given.items())
        raise SpecError(f"method {name!r} hears no teacher and has no use for {listed}")


def _check_stages(name: str, student: Outputs, teacher: Outputs) -> None:
    silent = [side for side, out in (("student", student), ("teacher", teacher)) if not out.stages]
    if silent:
        free = [other for other in METHODS.names() if METHODS.get(other).need != "stages"]
        raise SpecError(
            f"method {name!r} compares stages, but the {' and the '.join(silent)} shows none; "
            f"methods that need none: {', '.join(free)}"
        )


def _strides(outputs: Outputs, resolution: int) -> list[float]:
    return [resolution / max(stage.shape[2:]) for stage in outputs.stages]


def _heard(loss: DistillLoss, student: Outputs, teacher: Outputs) -> tuple[Signal, Signal]:
    """Return what a method without stages compares."""
    if loss.need == "logits":
        return student.logits, teacher.logits
    return student.embedding, teacher.embedding


class _Term(nn.Module):
    """A method with its weight, the stages that it compares and their adapters."""

    def __init__(self, part: _Part, pairs: Pairs, student: Outputs, teacher: Outputs) -> None:
        super().__init__()
        self.name = part.name
        self.weight = part.weight
        self.loss = part.loss
        self.pairs = pairs
        self.adapters = nn.ModuleList(
            _Adapter(part.loss.align, student.stages[s].shape[1], teacher.stages[t].shape[1])
            for s, t in pairs
        )

    def forward(self, student: Outputs, teacher: Outputs, target: Tensor) -> Tensor:
        """Return the unweighted loss."""
        value: Tensor = self.loss(*self._signals(student, teacher), target)
        return value

    def _signals(self, student: Outputs, teacher: Outputs) -> tuple[Signal, Signal]:
        if self.loss.need != "stages":
            return _heard(self.loss, student, teacher)
        taught = [teacher.stages[t] for _, t in self.pairs]
        adapted = [
            adapter(student.stages[s], goal.shape[2:])
            for (s, _), adapter, goal in zip(self.pairs, self.adapters, taught, strict=True)
        ]
        return adapted, taught


class _Adapter(nn.Module):
    """Bring a student's map to the size and the channels of the teacher's, where asked for.

    Sizes: averaged down or bilinearly up. Channels: 1x1 convolution and BatchNorm when they
    differ. FitNet's regressor also ends in a ReLU and spans sizes with larger kernels; here the
    ReLU is left out, as the tokens of a transformer and pre-activation maps are negative too,
    and the kernel stays 1x1, so that one adapter fits any two sizes.
    """

    def __init__(self, align: frozenset[Align], student: int, teacher: int) -> None:
        super().__init__()
        self.resizes = "size" in align
        self.project: nn.Module = nn.Identity()
        if "channels" in align and student != teacher:
            convolution = nn.Conv2d(student, teacher, kernel_size=1, bias=False)
            self.project = nn.Sequential(convolution, nn.BatchNorm2d(teacher))

    def forward(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        """Return maps [B, C of the teacher, *size]."""
        if self.resizes:
            maps = _resize(maps, size)
        projected: Tensor = self.project(maps)
        return projected


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    height, width = size
    if maps.shape[2:] == (height, width):
        return maps
    if maps.shape[2] >= height and maps.shape[3] >= width:
        return F.adaptive_avg_pool2d(maps, (height, width))
    return F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)
