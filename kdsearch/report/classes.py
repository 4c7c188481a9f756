"""The tables of the report on classes: their scores with noise, and which are taken for which.

They show evaluations that have scores of classes, whatever the task; others have no such tables.
"""

from __future__ import annotations

from collections.abc import Sequence

from kdsearch.report import words
from kdsearch.report.tables import Table
from kdsearch.study.chance import percent_of
from kdsearch.study.summary import Summary
from kdsearch.tasks.base import ClassScores, Details

_SPLITS = ("test", "validation")
_LEAST = 0.005  # share of a class; what is taken for another less often is not named


def by_class(summary: Summary) -> Table | None:
    """Return the score of each class, its noise, and what it is most often taken for."""
    split, student = _shipped(summary)
    if student is None or student.scores is None:
        return None
    other = summary.details.get(f"teacher {split}")
    scores, theirs = student.scores, None if other is None else other.scores
    head = ("class", "of labels, %", f"student {scores.label}", f"teacher {scores.label}", "gap")
    rows = tuple(
        (
            name,
            f"{100 * scores.shares[i]:.2f}",
            _score(scores, i),
            words.UNKNOWN if theirs is None else _score(theirs, i),
            _gap(scores, theirs, i),
            _taken_for(student, i, summary.classes),
        )
        for i, name in enumerate(summary.classes)
    )
    caption = f"{scores.label} of each class on {split}; \u00b1 one standard error over images"
    return Table(caption=caption, head=(*head, "most often taken for"), rows=rows)


def confusion(summary: Summary) -> Table | None:
    """Return the percentages of each class that the student gives to each class."""
    split, student = _shipped(summary)
    if student is None or student.scores is None or not student.confusion:
        return None
    rows = tuple(
        (name, *(f"{100 * part / sum(counts):.1f}" if sum(counts) else "" for part in counts))
        for name, counts in zip(summary.classes, student.confusion, strict=True)
    )
    caption = f"Answers of the student to each class on {split}, % of its labels"
    return Table(caption=caption, head=("labels \\ answers", *summary.classes), rows=rows)


def _shipped(summary: Summary) -> tuple[str, Details | None]:
    """Return the split to show, and the evaluation of the shipped student."""
    for split in _SPLITS:
        if (found := summary.details.get(f"shipped {split}")) is not None:
            return split, found
    return _SPLITS[0], None


def _score(scores: ClassScores, place: int) -> str:
    value = scores.values[place]
    return "no labels" if value is None else f"{percent_of(value, scores.errors[place])} %"


def _gap(scores: ClassScores, theirs: ClassScores | None, place: int) -> str:
    """Return the student's score less the teacher's, in points."""
    own = scores.values[place]
    other = None if theirs is None else theirs.values[place]
    if own is None or other is None:
        return words.UNKNOWN
    return f"{100 * (own - other):+.1f}".replace("-", words.MINUS)


def _taken_for(details: Details, place: int, classes: Sequence[str]) -> str:
    """Return the wrong class that most labels of a class get, '' for hardly any."""
    if not details.confusion or not (total := sum(details.confusion[place])):
        return ""
    others = [(count, i) for i, count in enumerate(details.confusion[place]) if i != place]
    count, most = max(others)
    share = count / total
    return f"{classes[most]} ({100 * share:.1f} %)" if share >= _LEAST else ""
