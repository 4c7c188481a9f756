"""Which methods a teacher can teach that does not know all classes of the data.

Features and relations need no classes. A comparison of logits takes place on the classes that both
know: a softmax over these on either side. Methods that also read the label, the whole outputs or
the gradient of a class need all classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from kdsearch.errors import SpecError
from kdsearch.methods import METHODS
from kdsearch.methods.base import DistillLoss

# Classes of the data that a teacher's logits are of; None: all of them, in order.
Classes: TypeAlias = tuple[int, ...] | None


def serves(method: type[DistillLoss], classes: Classes) -> bool:
    """Return whether a teacher that knows these classes can teach by a method."""
    if classes is None or not method.reads & {"logits", "gradient"}:
        return True
    return bool(classes) and method.need == "logits" and method.labels == "unused"


def refusal(name: str, teachers: Sequence[Classes]) -> str:
    """Return why no teacher can teach by a method, or a part of `a+b`; '' where one can."""
    for part in name.split("+"):
        method = METHODS.get(part.strip())
        if not method.reads or any(serves(method, classes) for classes in teachers):
            continue
        if not any(teachers):
            return f"{part} reads the teacher's logits, and it knows none of the classes"
        return f"{part} needs logits of all classes, and the teacher knows some of them"
    return ""


def check_teachers(method: str, teachers: Sequence[Classes]) -> None:
    """Raise SpecError, with the methods that could be used, where no teacher serves a method."""
    if reason := refusal(method, teachers):
        usable = [name for name in METHODS.names() if METHODS.get(name).reads]
        usable = [name for name in usable if not refusal(name, teachers)]
        raise SpecError(
            f"method {method!r}: {reason}. Methods that it can teach by: {', '.join(usable)}. "
            "--teacher-epochs 5 fits a teacher to these classes"
        )
