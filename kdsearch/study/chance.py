"""Sentences on a network that is no better than one constant answer, '' where it is better."""

from __future__ import annotations

from collections.abc import Sequence

from kdsearch.study.summary import is_at_chance
from kdsearch.tasks.base import ClassScores, Details, Metric


def student_at_chance(
    metric: Metric,
    val: float,
    chance: float | None,
    images: int | None,
    which: str,
    answer: str = "",
) -> str:
    """Return the warning of a student. which: names it; answer: see `constant_answer`."""
    if not is_at_chance(metric, val, chance, images):
        return answer and f"Do not use {which}: {answer}."
    finding = _no_better(metric, val, chance, answer)
    return f"Do not use {which}: {finding} Train longer (--epochs)."


def teacher_at_chance(
    metric: Metric, val: float, chance: float | None, images: int | None, answer: str = ""
) -> str:
    """Return the warning of a teacher, from which nothing can be learned."""
    if not is_at_chance(metric, val, chance, images):
        return ""
    finding = _no_better(metric, val, chance, answer)
    advice = "Train it longer (--teacher-epochs) or give another --teacher."
    return f"The teacher teaches nothing: {finding} {advice}"


def _no_better(metric: Metric, val: float, chance: float | None, answer: str) -> str:
    assert chance is not None
    return (
        f"its validation {metric.label}, {metric.text(val)}, is no better than one constant answer "
        f"({metric.text(chance)}), beyond noise.{answer and f' Here {answer}.'}"
    )


def constant_answer(details: Details | None, classes: Sequence[str]) -> str:
    """Return 'it answers CLASS for every image' where it does, else ''."""
    only = None if details is None else details.only_answer()
    return "" if only is None else f"it answers {classes[only]!r} for every image"


def _by_score(scores: ClassScores, classes: Sequence[str], split: str, most: int) -> str:
    """Return the classes with the lowest scores and their noise."""
    rows = zip(scores.values, scores.errors, classes, strict=True)
    found = sorted((value, error, name) for value, error, name in rows if value is not None)
    shown = ", ".join(
        f"{name} ({percent_of(value, error)} %)" for value, error, name in found[:most]
    )
    missing = len(classes) - len(found)
    gaps = f"; {missing} of {len(classes)} classes are not there" if missing else ""
    return f"By class on {split}: lowest {scores.label}: {shown}{gaps}."


def percent_of(value: float, error: float | None) -> str:
    """Return 0.412 with an error of 0.031 as '41.2 ± 3.1', without one as '41.2'."""
    noise = "" if error is None else f" \u00b1 {100 * error:.1f}"
    return f"{100 * value:.1f}{noise}"


def by_class(details: Details | None, classes: Sequence[str], split: str, most: int = 3) -> str:
    """Return the classes with the lowest accuracy or score, '' without classes."""
    if details is not None and details.scores is not None:
        return _by_score(details.scores, classes, split, most)
    if details is None or len(details.images) != len(classes) or not classes:
        return ""
    there = [i for i, count in enumerate(details.images) if count]
    worst = sorted(there, key=lambda i: (details.right[i] / details.images[i], -details.images[i]))
    shown = ", ".join(
        f"{classes[i]} ({100 * details.right[i] / details.images[i]:.0f} % of {details.images[i]})"
        for i in worst[:most]
    )
    missing = len(classes) - len(there)
    gaps = f"; {missing} of {len(classes)} classes have no image there" if missing else ""
    balanced = 100 * details.metrics["balanced_accuracy"]
    return f"By class on {split}: balanced accuracy {balanced:.2f} %; lowest: {shown}{gaps}."
