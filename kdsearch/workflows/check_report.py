"""The results of `kdsearch check`, and the conclusions from them in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kdsearch.space import Params
from kdsearch.study.summary import is_at_chance
from kdsearch.tasks import ACCURACY, Metric
from kdsearch.workflows.calibration import Calibration

WIDE_GAP = 100
_MEMORISED = 0.99
_FEW_ERRORS = 10
_FEW_IMAGES = 50
_CALIBRATED = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherCheck:
    """One teacher, or the blend of all of them at equal weights."""

    name: str
    validation: Calibration
    train: Calibration


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentCheck:
    """Costs of one student at batch 1; reason: why it cannot be built or priced.

    size: `smallest` and `largest` with every knob at its lowest and highest, `only` where a family
    has no range. flops_ratio, params_ratio: the teachers' over the student's.
    """

    family: str
    size: str
    resolution: int
    knobs: Params
    flops: int | None = None
    params: int | None = None
    flops_ratio: float | None = None
    params_ratio: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodCheck:
    """A method on one family; loss: of its training step, None where it failed for `reason`."""

    method: str
    family: str
    usable: bool
    loss: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """The results of a check; notes: conclusions, one sentence each. inventory: of the images."""

    data: str
    inventory: tuple[str, ...]
    classes: int
    metric: Metric
    space: str
    batch_size: int
    teacher_flops: int | None
    teacher_params: int
    teachers: tuple[TeacherCheck, ...]
    students: tuple[StudentCheck, ...]
    methods: tuple[MethodCheck, ...]
    notes: tuple[str, ...]


def on_teachers(
    teachers: Iterable[TeacherCheck], trained_here: Sequence[bool], chance: float | None
) -> Iterator[str]:
    """Yield conclusions from the accuracies and the best temperature of each teacher.

    Few images allow none, nor does a teacher that is at chance.
    """
    for teacher, is_ours in zip(teachers, trained_here, strict=False):  # the blend comes last
        train_set, val = teacher.train, teacher.validation
        if val.images < _FEW_IMAGES:
            yield (
                f"Teacher {teacher.name}: {val.images} validation images are too few for a verdict "
                f"on it; give at least {_FEW_IMAGES}"
            )
            continue
        if is_at_chance(ACCURACY, val.accuracy, chance, val.images):
            continue
        if train_set.accuracy >= _MEMORISED and _differ(train_set, val):
            yield (
                f"Teacher {teacher.name} is right on {_percent(train_set)} training and "
                f"{_percent(val)} validation images: it has memorised the former, and soft "
                "labels of memorised images add little to the labels (mean confidence "
                f"{100 * train_set.confidence:.2f} %). Augmentation (train.policy, train.mix), "
                "unlabelled images or a higher temperature add more"
            )
        if min(train_set.accuracy, _at_least(val)) >= _MEMORISED and not is_ours:
            yield (
                f"Teacher {teacher.name} is right on {_percent(val)} validation images: if it was "
                "trained on them, its accuracy and calibration here are too high; give data with "
                "a val split that it was not trained on"
            )
        if val.temperature and not 1 / _CALIBRATED < val.temperature < _CALIBRATED:
            yield _on_temperature(teacher.name, val, val.temperature)


def _on_temperature(name: str, val: Calibration, temperature: float) -> str:
    errors = round(val.images * (1 - val.accuracy))
    rough = f" (uncertain: {errors} of {val.images:,} are wrong)" if errors < _FEW_ERRORS else ""
    kind = "overconfident" if temperature > 1 else "underconfident"
    return (
        f"Teacher {name} is {kind}: its probabilities fit validation best at temperature "
        f"{temperature:.2f}{rough}; start a search of temperatures there"
    )


def _differ(one: Calibration, other: Calibration) -> bool:
    """Return whether the first accuracy is higher, beyond the noise of both."""
    variances = [ACCURACY.variance(each.accuracy, each.images) for each in (one, other)]
    return one.accuracy - other.accuracy > 2 * math.sqrt(sum(variances))


def _at_least(found: Calibration) -> float:
    """Return the accuracy less its noise: all of 50 images may be right by luck."""
    return found.accuracy - 2 * math.sqrt(ACCURACY.variance(found.accuracy, found.images))


def _percent(found: Calibration) -> str:
    return f"{100 * found.accuracy:.2f} % of {found.images:,}"


def on_students(students: Iterable[StudentCheck]) -> Iterator[str]:
    """Yield students that cannot be built, or are too small or too large for the teacher."""
    wide, costlier = [], []
    for student in students:
        name = student.family + f" ({student.size})" * (student.size != "only")
        if student.reason:
            yield f"Student {name} cannot be used: {student.reason}"
        elif student.flops_ratio is not None and student.flops_ratio > WIDE_GAP:
            wide.append(f"{name} {student.flops_ratio:.0f}x")
        elif student.flops_ratio is not None and student.flops_ratio < 1:
            costlier.append(name)
    if costlier:
        yield f"Of more FLOPs than the teacher, so there is nothing to save: {', '.join(costlier)}"
    if wide:
        yield (
            f"A wide gap in FLOPs, teacher over student: {', '.join(wide)}. A teacher that far "
            "above can teach worse than a nearer one (Cho and Hariharan, ICCV 2019, 1910.01348; "
            "Mirzadeh et al., AAAI 2020, 1902.03393): try wider students, a smaller teacher, or an "
            "assistant: distil a student of a size in between, then give it as --teacher "
            "study:FOLDER"
        )
