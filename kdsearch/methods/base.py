"""The base class of distillation losses: their declarations, checks and numerics.

A method implements its formula in `forward`. Calling it detaches the teacher, checks the declared
shapes, and computes outside autocast in at least float32: half precision overflows in squares and
cancels in differences. The Distiller applies the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.errors import SpecError
from kdsearch.models.features import Outputs
from kdsearch.space import Choice, Float, Int

Need: TypeAlias = Literal["nothing", "logits", "embedding", "stages", "attention", "outputs"]
Part: TypeAlias = Literal[
    "logits", "embedding", "stages", "attention", "gradient", "edges", "boxes"
]
Align: TypeAlias = Literal["channels", "size"]
Labels: TypeAlias = Literal["unused", "hard", "mixed"]
Ranges: TypeAlias = Mapping[str, Float | Int | Choice]
Signal: TypeAlias = Tensor | Sequence[Tensor] | Outputs
_Pair: TypeAlias = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Facts of the training that a method can use when it is built.

    samples: images in the training set, 0: unknown. batch_size: images in a step, 0: unknown.
    teacher_head: (weight [K, D], bias [K] or None) of the linear layer on the teacher's embedding,
    None where there is none. teacher_classes: places of the classes that the teacher knows, None:
    all.
    """

    samples: int = 0
    batch_size: int = 0
    teacher_head: tuple[Tensor, Tensor | None] | None = None
    teacher_classes: tuple[int, ...] | None = None


class DistillLoss(nn.Module):
    """A distance or another loss between a student and its teacher.

    need: the outputs compared: logits [B, K], embedding [B, D], stages (lists of maps [B, C, H, W],
    where the student's i-th goes with the teacher's i-th), attention (the same with maps
    [B, 3 * D, H, W] of query, key and value), or outputs: the whole `Outputs` of both.
    reads: the parts of the teacher's outputs that it reads; empty: it needs no teacher.
    align: `channels` or `size` of paired maps, or `channels` of embeddings, which the Distiller
    adapts on the student's side. is_pairwise: the loss on several pairs is the sum over pairs.
    labels: the target is unused, hard (class indices [B]; a mixed image counts as its larger
    share) or mixed (probabilities [B, K] too).
    alpha, weight, mapping: defaults of a recipe. min_batch: smallest number of samples.
    min_classes: of logits; above 1 the method compares the classes that are not the target.
    tasks: the only ones that it is for; empty: all but those in `unfit`, each with the reason.
    ranges: useful ranges of alpha, weight, mapping and the knobs, which are the arguments of the
    constructor. is_distance: loss(x, x) = 0.
    """

    need: ClassVar[Need]
    reads: ClassVar[frozenset[Part]]
    align: ClassVar[frozenset[Align]] = frozenset()
    is_pairwise: ClassVar[bool] = False
    labels: ClassVar[Labels] = "unused"
    alpha: ClassVar[float] = 0.5
    weight: ClassVar[float] = 1.0
    mapping: ClassVar[str] = "last"
    min_batch: ClassVar[int] = 1
    min_classes: ClassVar[int] = 1
    tasks: ClassVar[frozenset[str]] = frozenset()
    unfit: ClassVar[Mapping[str, str]] = {}
    ranges: ClassVar[Ranges] = {}
    is_distance: ClassVar[bool] = True
    forward: Callable[..., Tensor]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        need = getattr(cls, "need", None)
        if need not in get_args(Need):
            raise SpecError(
                f"method class {cls.__name__}: `need` must be one of {', '.join(get_args(Need))}, "
                f"not {need!r}"
            )
        if need in get_args(Part):
            cls.reads = cls.__dict__.get("reads", frozenset({need}))
        elif not hasattr(cls, "reads"):
            raise SpecError(
                f"method class {cls.__name__}: with need {need!r}, `reads` must list which of "
                f"{', '.join(get_args(Part))} of the teacher it reads"
            )

    @classmethod
    def unfit_for(cls, task: str) -> str:
        """Return why the method is not for a task, or an empty string."""
        if cls.tasks and task not in cls.tasks:
            return f"it is for {' and '.join(sorted(cls.tasks))}"
        return cls.unfit.get(task, "")

    def __init__(self) -> None:
        super().__init__()
        self._is_prepared = False

    def prepare(self, student: Signal, teacher: Signal | None, setting: Setting) -> None:
        """Make the modules whose shapes depend on the signals; called once, before training.

        They get the signals' device and dtype, at least float32. A method with such modules
        overrides `build`. Raises SpecError for shapes that cannot be compared.
        """
        self.check(student, teacher)
        if 0 < setting.batch_size < self.min_batch:
            raise SpecError(
                f"{self._name} relates or normalises the samples of a batch and needs at least "
                f"{self.min_batch} of them, not {setting.batch_size}; raise train.batch_size"
            )
        self.build(student, teacher, setting)
        self.to(widen(_first(student)))
        self._is_prepared = True

    def build(self, student: Any, teacher: Any, setting: Setting) -> None:
        """Make the modules that `forward` trains; none by default. The signals are checked."""

    def __call__(self, student: Any, teacher: Any, target: Tensor) -> Tensor:
        """Return the unweighted loss, a scalar in float32 or wider.

        target: [B] class indices, or [B, K] probabilities of mixed images. Raises SpecError for
        shapes that contradict `need` and `align`.
        """
        if self._is_prepared:
            self.check(student, teacher)
        else:
            self.prepare(student, teacher, Setting())
        if self.labels == "hard" and target.ndim == 2:
            target = target.argmax(dim=1)
        with torch.autocast(target.device.type, enabled=False):
            loss: Tensor = super().__call__(
                _each(student, widen),
                None if teacher is None else _each(teacher, lambda found: widen(found.detach())),
                target,
            )
        return loss

    def check(self, student: Any, teacher: Any) -> None:
        """Raise SpecError unless the signals have the kinds and shapes that are compared."""
        if self.need == "nothing" or (teacher is None and not self.reads):
            return
        if teacher is None:
            raise SpecError(f"{self._name} needs {', '.join(sorted(self.reads))} of a teacher")
        _check_pairs(self._name, *self._paired(student, teacher))
        if self.need == "logits" and student.shape[1] < self.min_classes:
            raise SpecError(
                f"{self._name} compares the classes that are not the target and needs at least "
                f"{self.min_classes} classes, not {student.shape[1]}; use kd"
            )

    def _paired(self, student: Signal, teacher: Signal) -> tuple[list[_Pair], str, str]:
        """Return the pairs of tensors to check, their layout, and the axes that must be equal."""
        if self.need in ("stages", "attention"):
            if isinstance(student, Tensor | Outputs) or isinstance(teacher, Tensor | Outputs):
                raise SpecError(f"{self._name} compares {self.need}: lists of maps [B, C, H, W]")
            axes = "B" + "C" * ("channels" in self.align) + "HW" * ("size" in self.align)
            return _zipped(self._name, student, teacher), "BCHW", axes
        if self.need == "outputs":
            if not isinstance(student, Outputs) or not isinstance(teacher, Outputs):
                raise SpecError(f"{self._name} compares Outputs, those of a whole network")
            axes = "BK" if "logits" in self.reads else "B"
            return [(student.logits, teacher.logits)], "BK", axes
        if not isinstance(student, Tensor) or not isinstance(teacher, Tensor):
            raise SpecError(f"{self._name} compares {self.need}, two tensors, not lists of maps")
        if self.need == "logits":
            return [(student, teacher)], "BK", "BK"
        return [(student, teacher)], "BD", "B" + "D" * ("channels" in self.align)

    @property
    def _name(self) -> str:
        """Return the file's name of a built-in method, the class's name of a user's."""
        package, _, module = type(self).__module__.rpartition(".")
        return f"method {module}" if package == __package__ else type(self).__name__


class PairLoss(DistillLoss):
    """A loss without modules on stages: the sum of `distance` over the pairs of maps."""

    need: ClassVar[Need] = "stages"
    is_pairwise = True
    distance: Callable[[Tensor, Tensor], Tensor]

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], target: Tensor
    ) -> Tensor:
        """Return the sum over the pairs; the target is unused."""
        pairs = zip(student, teacher, strict=True)
        return torch.stack([self.distance(s, t) for s, t in pairs]).sum()


def widen(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or unchanged if it is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def resized(maps: Tensor, size: Sequence[int], *, mode: str = "nearest") -> Tensor:
    """Return maps averaged down, or interpolated up, to a size."""
    height, width = size
    if maps.shape[2:] == (height, width):
        return maps
    if maps.shape[2] >= height and maps.shape[3] >= width:
        return F.adaptive_avg_pool2d(maps, (height, width))
    return F.interpolate(maps, (height, width), mode=mode)


def positive(name: str, value: float, *, or_zero: bool = False) -> float:
    """Return a knob if it is a finite number above 0, or at least 0. Raises SpecError."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and (value > 0 or (or_zero and value == 0)):
        return value
    raise SpecError(f"method {name}: {value!r} is not a number {'>=' if or_zero else '>'} 0")


def fraction(name: str, value: float) -> float:
    """Return a knob if it is a number in [0, 1). Raises SpecError."""
    if positive(name, value, or_zero=True) < 1:
        return value
    raise SpecError(f"method {name}: {value!r} is not a number in [0, 1)")


def _zipped(name: str, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[_Pair]:
    if not 0 < len(student) == len(teacher):
        raise SpecError(
            f"{name} compares maps in pairs; the student has {len(student)}, "
            f"the teacher has {len(teacher)}"
        )
    return list(zip(student, teacher, strict=True))


def _check_pairs(name: str, pairs: list[_Pair], layout: str, equal: str) -> None:
    axes = [layout.index(axis) for axis in equal]
    for i, (s, t) in enumerate(pairs):
        if not s.ndim == t.ndim == len(layout) or any(s.shape[a] != t.shape[a] for a in axes):
            raise SpecError(
                f"{name} compares [{', '.join(layout)}] with equal {', '.join(equal)}; pair {i} "
                f"is {list(s.shape)} of the student and {list(t.shape)} of the teacher"
            )


def _first(signal: Signal) -> Tensor:
    if isinstance(signal, Outputs):
        return signal.logits
    return signal if isinstance(signal, Tensor) else signal[0]


def _each(signal: Signal, change: Callable[[Tensor], Tensor]) -> Signal:
    if isinstance(signal, Tensor):
        return change(signal)
    if isinstance(signal, Outputs):
        return signal.map(change)
    return [change(found) for found in signal]
