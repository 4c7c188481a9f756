"""What a distillation loss declares, and the ground on which all of them are computed.

A method writes its formula in `forward`. Calling it detaches the teacher, refuses shapes that it
did not declare, and leaves autocast for at least float32: half precision overflows in squares
and cancels in differences. Weights are not applied here; the Distiller applies them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from kdsearch.errors import SpecError
from kdsearch.space import Choice, Float, Int

Need: TypeAlias = Literal["nothing", "logits", "embedding", "stages"]
Align: TypeAlias = Literal["channels", "size"]
Ranges: TypeAlias = Mapping[str, Float | Int | Choice]
Signal: TypeAlias = Tensor | Sequence[Tensor]


class DistillLoss(nn.Module):
    """The distance, or another scalar to lower, between a student and its teacher.

    need: what it compares: logits [B, K], embedding [B, D], or stages (lists of maps
    [B, C, H, W], where the student's i-th goes with the teacher's i-th).
    align: what must agree between paired maps; the Distiller adapts the student's to it.
    alpha, weight, mapping: used where a recipe does not say.
    ranges: where a search looks for alpha, weight, temperature, mapping and the knobs, which are
    the arguments of the constructor. is_distance: whether loss(x, x) = 0.
    """

    need: ClassVar[Need]
    align: ClassVar[frozenset[Align]] = frozenset()
    alpha: ClassVar[float] = 0.5
    weight: ClassVar[float] = 1.0
    mapping: ClassVar[str] = "last"
    ranges: ClassVar[Ranges] = {}
    is_distance: ClassVar[bool] = True
    forward: Callable[..., Tensor]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        needs = get_args(Need)
        if getattr(cls, "need", None) not in needs:
            raise SpecError(
                f"method class {cls.__name__}: `need` must be one of {', '.join(needs)}, "
                f"not {getattr(cls, 'need', None)!r}"
            )

    def __call__(self, student: Signal, teacher: Signal, target: Tensor) -> Tensor:
        """Return the unweighted loss, a scalar in float32 or wider. target: [B] class indices.

        Raises SpecError when the shapes are not those that `need` and `align` promise.
        """
        self.check(student, teacher)
        with torch.autocast(target.device.type, enabled=False):
            loss: Tensor = super().__call__(
                _each(student, widen), _each(teacher, lambda found: widen(found.detach())), target
            )
        return loss

    def check(self, student: Signal, teacher: Signal) -> None:
        """Raise SpecError unless the shapes are those that this method compares."""
        if self.need == "nothing":
            return
        if self.need == "stages":
            axes = ["B"]
            axes += ["C"] if "channels" in self.align else []
            axes += ["H", "W"] if "size" in self.align else []
            pairs, layout = (list(student), list(teacher)), "BCHW"
        elif isinstance(student, Tensor) and isinstance(teacher, Tensor):
            axes = ["B", "K"] if self.need == "logits" else ["B"]
            pairs, layout = ([student], [teacher]), "BK" if self.need == "logits" else "BD"
        else:
            raise SpecError(f"{self._name} compares {self.need}, two tensors, not lists of maps")
        _check_pairs(self._name, *pairs, layout=layout, equal=axes)

    @property
    def _name(self) -> str:
        return type(self).__name__


def widen(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or as it is when it is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def positive(name: str, value: float, *, or_zero: bool = False) -> float:
    """Return a knob that is a finite number above 0, or from 0 on. Raises SpecError."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and math.isfinite(value) and (value > 0 or (or_zero and value == 0)):
        return value
    raise SpecError(f"method {name}: {value!r} is not a number {'>=' if or_zero else '>'} 0")


def _check_pairs(
    name: str, student: list[Tensor], teacher: list[Tensor], *, layout: str, equal: list[str]
) -> None:
    if not 0 < len(student) == len(teacher):
        raise SpecError(
            f"{name} compares maps in pairs; the student gives {len(student)}, "
            f"the teacher {len(teacher)}"
        )
    axes = [layout.index(axis) for axis in equal]
    for i, (s, t) in enumerate(zip(student, teacher, strict=True)):
        if not s.ndim == t.ndim == len(layout) or any(s.shape[a] != t.shape[a] for a in axes):
            raise SpecError(
                f"{name} compares [{', '.join(layout)}] with equal {', '.join(equal)}; pair {i} "
                f"is {list(s.shape)} of the student and {list(t.shape)} of the teacher"
            )


def _each(signal: Signal, change: Callable[[Tensor], Tensor]) -> Signal:
    return change(signal) if isinstance(signal, Tensor) else [change(found) for found in signal]
