"""The tables of the report on classes: their scores with noise, and which are taken for which.

They show evaluations that have scores of classes or count images by class; others have no such
tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from kdsearch.hpo.statistics import binomial_variance
from kdsearch.report import words
from kdsearch.report.tables import Table
from kdsearch.study.chance import percent_of
from kdsearch.study.summary import Summary
from kdsearch.tasks.base import ClassScores, Details

_SPLITS = ("test", "validation")
MOST = 64  # rows of classes
_LEAST = 0.005  # share of a class; what is taken for another less often is not named


def by_class(summary: Summary) -> Table | None:
    """Return the score of each class, its noise, and what it is most often taken for.

    Of more than MOST classes the worst MOST are shown.
    """
    split, student = _shipped(summary)
    scores = _scores(student)
    if student is None or scores is None:
        return None
    theirs = _scores(summary.details.get(f"teacher {split}"))
    head = ("class", "of labels, %", f"student {scores.label}", f"teacher {scores.label}", "gap")
    places = list(range(len(summary.classes)))
    if len(places) > MOST:
        known = [i for i in places if scores.values[i] is not None]
        places = sorted(known, key=lambda i: scores.values[i] or 0.0)[:MOST]
    rows = tuple(
        (
            summary.classes[i],
            f"{100 * scores.shares[i]:.2f}",
            _score(scores, i),
            words.UNKNOWN if theirs is None else _score(theirs, i),
            _gap(scores, theirs, i),
            _taken_for(student, i, summary.classes),
        )
        for i in places
    )
    which = "each class" if len(rows) == len(summary.classes) else f"the {len(rows)} worst classes"
    label = f"{scores.label[:1].upper()}{scores.label[1:]}"
    caption = f"{label} of {which} on {split}; \u00b1 one standard error over images"
    return Table(caption=caption, head=(*head, "most often taken for"), rows=rows)


def _scores(details: Details | None) -> ClassScores | None:
    """Return the scores of classes: those of the task, else the recall where images have a class.

    None for an evaluation with neither.
    """
    if details is None or details.scores is not None:
        return None if details is None else details.scores
    if not details.images or len(details.right) != len(details.images):
        return None
    pairs, total = list(zip(details.images, details.right, strict=True)), sum(details.images)
    return ClassScores(
        label="recall",
        values=tuple(right / count if count else None for count, right in pairs),
        errors=tuple(
            math.sqrt(binomial_variance(right / count, count)) if count else None
            for count, right in pairs
        ),
        shares=tuple(count / total for count, _ in pairs),
    )


def confusion(summary: Summary) -> Table | None:
    """Return the percentages of each class that the student gives to each class."""
    split, student = _shipped(summary)
    if student is None or not student.confusion:
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
