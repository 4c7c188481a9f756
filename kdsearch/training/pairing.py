"""Pair the stages of a student with those of a teacher.

A stage is given by its stride alone: the input's side divided by the map's side, so that networks
at different resolutions compare. Pairs are (student's index, teacher's index). No torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from math import inf, log2
from typing import TypeAlias

from kdsearch.errors import SpecError, did_you_mean
from kdsearch.spec import LOGITS

Pairs: TypeAlias = list[tuple[int, int]]
Strides: TypeAlias = Sequence[float]

_PAIR = re.compile(r"\s*(-?\d+)\s*:\s*(-?\d+)\s*")


def pair_stages(strategy: str, student_strides: Strides, teacher_strides: Strides) -> Pairs:
    """Return the pairs of stages of a strategy, shallow to deep.

    last: the two deepest. even: as many as the network with fewer stages has, at evenly spaced
    depths, the deepest included. stride: as many, in order, with the least sum of
    |log2 stride ratio|; ties go to similar relative depths. all: every stage with every stage.
    `0:1,-1:-1`: these pairs, where -1 is the deepest. logits: the logits alone, as one stage.
    Raises SpecError for text that is none of these, an unknown stage, or networks without stages.
    """
    check_mapping(strategy)
    students, teachers = len(student_strides), len(teacher_strides)
    if not students or not teachers:
        raise SpecError(
            f"method.mapping {strategy!r}: nothing to pair; the student has {students} "
            f"stages, the teacher {teachers}"
        )
    if strategy in _STRATEGIES:
        return _STRATEGIES[strategy](student_strides, teacher_strides)
    pairs = [
        (_index(strategy, "student", s, students), _index(strategy, "teacher", t, teachers))
        for s, t in _explicit(strategy)
    ]
    if len(set(pairs)) < len(pairs):
        raise SpecError(f"method.mapping {strategy!r}: names a pair twice")
    return pairs


def check_mapping(strategy: str) -> None:
    """Raise SpecError unless the text is a strategy or a list of pairs."""
    if strategy not in _STRATEGIES:
        _explicit(strategy)


def _explicit(text: str) -> Pairs:
    found = [_PAIR.fullmatch(part) for part in text.split(",")]
    pairs = [(int(match[1]), int(match[2])) for match in found if match]
    if len(pairs) < len(found):
        raise SpecError(
            f"method.mapping: {text!r}{did_you_mean(text, _STRATEGIES)} is not one of "
            f"{', '.join(_STRATEGIES)}, nor pairs student:teacher such as '0:1,-1:-1'"
        )
    return pairs


def _index(strategy: str, side: str, index: int, count: int) -> int:
    if not -count <= index < count:
        raise SpecError(
            f"method.mapping {strategy!r}: the {side} has no stage {index}; it has stages 0 to "
            f"{count - 1}, from the deepest back -1 to {-count}"
        )
    return index % count


def _last(student: Strides, teacher: Strides) -> Pairs:
    return [(len(student) - 1, len(teacher) - 1)]


def _even(student: Strides, teacher: Strides) -> Pairs:
    count = min(len(student), len(teacher))
    return [
        (i * len(student) // count - 1, i * len(teacher) // count - 1) for i in range(1, count + 1)
    ]


def _stride(student: Strides, teacher: Strides) -> Pairs:
    if len(student) > len(teacher):
        return [(s, t) for t, s in _stride(teacher, student)]
    # best[j]: the cheapest way to pair the student's stages so far within the teacher's first j.
    # Costs are (stride, depth) in whole numbers, so that ties are exact.
    best: list[tuple[float, float, Pairs]] = [(0, 0, [])] * (len(teacher) + 1)
    for i, student_stride in enumerate(student):
        row: list[tuple[float, float, Pairs]] = [(inf, inf, [])]
        for j, teacher_stride in enumerate(teacher):
            stride, depth, pairs = best[j]
            stride += round(1e6 * abs(log2(student_stride / teacher_stride)))
            depth += abs((i + 1) * len(teacher) - (j + 1) * len(student))
            row.append(min(row[j], (stride, depth, [*pairs, (i, j)])))
        best = row
    return best[-1][2]


def _all(student: Strides, teacher: Strides) -> Pairs:
    return [(s, t) for s in range(len(student)) for t in range(len(teacher))]


def _logits(student: Strides, teacher: Strides) -> Pairs:
    return [(0, 0)]


_STRATEGIES: Mapping[str, Callable[[Strides, Strides], Pairs]] = {
    "last": _last,
    "even": _even,
    "stride": _stride,
    "all": _all,
    LOGITS: _logits,
}
