"""Which methods a teacher can teach that does not know all classes of the data.

Features and relations need no classes. A comparison of logits takes place on the classes that both
know: a softmax over these on either side. Methods that also read the label, the whole outputs or
the gradient of a class need all classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

from kdsearch.errors import SpecError
from kdsearch.methods import METHODS
from kdsearch.methods.base import DistillLoss

# Classes of the data that a teacher's logits are of; None: all of them, in order.
Classes: TypeAlias = tuple[int, ...] | None


class Teaching(Protocol):
    """What a teacher knows, and the parts of `Outputs` that it gives, None: all it has."""

    @property
    def classes(self) -> Classes:
        """Return the classes that it knows."""

    @property
    def teaches(self) -> frozenset[str] | None:
        """Return the parts that it gives."""


def gives(method: type[DistillLoss], teacher: Teaching) -> bool:
    """Return whether a teacher gives all parts that a method reads."""
    return teacher.teaches is None or method.reads <= teacher.teaches


def serves(method: type[DistillLoss], teacher: Teaching) -> bool:
    """Return whether a teacher can teach by a method."""
    if not gives(method, teacher):
        return False
    if teacher.classes is None or not method.reads & {"logits", "gradient"}:
        return True
    return bool(teacher.classes) and method.need == "logits" and method.labels == "unused"


def refusal(name: str, teachers: Sequence[Teaching]) -> str:
    """Return why no teacher can teach by a method, or a part of `a+b`; '' where one can."""
    for part in name.split("+"):
        method = METHODS.get(part.strip())
        if not method.reads or any(serves(method, teacher) for teacher in teachers):
            continue
        if teachers and not any(gives(method, teacher) for teacher in teachers):
            parts = sorted({part for teacher in teachers for part in teacher.teaches or ()})
            use = {"boxes": "pseudo_boxes", "logits": "kd"}[parts[0]]
            return f"{part}: the teacher gives {' and '.join(parts)} alone; use {use}"
        if not any(teacher.classes for teacher in teachers):
            return f"{part} reads the teacher's logits, and it knows none of the classes"
        return f"{part} needs logits of all classes, and the teacher knows some of them"
    return ""


def check_teachers(method: str, teachers: Sequence[Teaching]) -> None:
    """Raise SpecError, with the methods that could be used, where no teacher serves a method."""
    if reason := refusal(method, teachers):
        usable = [name for name in METHODS.names() if METHODS.get(name).reads]
        usable = [name for name in usable if not refusal(name, teachers)]
        is_fit = not any(teacher.teaches for teacher in teachers)
        fit = ". --teacher-epochs 5 fits a teacher to these classes" * is_fit
        raise SpecError(
            f"method {method!r}: {reason}. Methods that it can teach by: {', '.join(usable)}{fit}"
        )
