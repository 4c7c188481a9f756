"""Two drawings of the detector that ships: precision over recall by class, recall by size.

Both count a box from an IoU of 0.5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from kdsearch.hpo.statistics import binomial_variance
from kdsearch.report import paper
from kdsearch.report.axes import BLUE, GREEN, ORANGE, PURPLE, VERMILLION
from kdsearch.study.summary import Summary
from kdsearch.tasks.base import BoxCurves, Details

PRECISION, SIZES = "precision_recall.svg", "object_sizes.svg"
TITLES = {
    PRECISION: "precision over recall of each class",
    SIZES: "recall over the size of objects",
}
MOST = 10  # classes with a curve, the worst ones
_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE)
_DASHES = ("", 'stroke-dasharray="6 4"')
_SPLITS = ("test", "validation")


def of_summary(summary: Summary) -> dict[str, str]:
    """Return the drawings of the detector that ships, by file name; none for another student."""
    shipped = {split: f"shipped {split}" for split in _SPLITS}
    found = {s: summary.details[key] for s, key in shipped.items() if key in summary.details}
    return drawn(found, summary.classes)


def drawn(details: Mapping[str, Details], classes: Sequence[str]) -> dict[str, str]:
    """Return the drawings for evaluations by split, by file name; test before validation."""
    for split in _SPLITS:
        if split in details and (curves := details[split].curves) is not None:
            return {
                PRECISION: _precision(curves, classes, split),
                SIZES: _sizes(curves, split),
            }
    return {}


def _precision(curves: BoxCurves, classes: Sequence[str], split: str) -> str:
    frame = paper.Frame(low=(0, 0), high=(1, 1))
    known = [
        (sum(column) / len(column), name, column)
        for name, column in zip(classes, curves.precision, strict=True)
        if column is not None
    ]
    known.sort(key=lambda each: each[:2])
    parts = []
    for place, (_, name, column) in enumerate(known[:MOST]):
        steps = len(column) - 1
        points = [frame.at(i / steps, value) for i, value in enumerate(column)]
        colour = _COLOURS[place % len(_COLOURS)]
        look = f'stroke="{colour}" {_DASHES[place // len(_COLOURS) % len(_DASHES)]}'
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{joined}" fill="none" stroke-width="2" {look}/>')
        x, y = paper.LEFT + 12, paper.BOTTOM - 14 - 18 * place
        parts.append(paper.line(x, y - 4, x + 24, y - 4, colour, look.partition(" ")[2]))
        parts.append(paper.text(x + 30, y, name))
    less = f", the {MOST} worst of {len(known)}" if len(known) > MOST else ""
    return frame.draw(
        f"Precision over recall of each class on {split}{less}, at an IoU of 0.5",
        x_title=f"recall ({split}{less})",
        y_title="precision",
        is_percent=True,
        inside=parts,
    )


def _sizes(curves: BoxCurves, split: str) -> str:
    low, high = curves.sides[0], curves.sides[-1]
    counts = [objects for objects in curves.objects if objects]
    each = (
        f"{min(counts):,}" if min(counts) == max(counts) else f"{min(counts):,} to {max(counts):,}"
    )
    frame = paper.Frame(low=(max(low, 1e-3) / 1.1, 0), high=(high * 1.1, 1), log=True)
    return frame.draw(
        f"Objects on {split} that have a box with a score of {curves.score:g}, by size",
        x_title=f"side of objects, of the image's ({split}; log scale; {each} objects a line)",
        y_title=f"found, by boxes from a score of {curves.score:g}",
        is_percent=True,
        inside=list(_groups(frame, curves)),
    )


def _groups(frame: paper.Frame, curves: BoxCurves) -> Iterator[str]:
    """Yield for each group of sizes a line at its recall, and its standard error."""
    groups = zip(pairwise(curves.sides), curves.objects, curves.found, strict=True)
    for (low, high), objects, found in groups:
        if not objects:
            continue
        recall = found / objects
        error = binomial_variance(recall, objects) ** 0.5
        left, y = frame.at(max(low, 1e-3), recall)
        right, _ = frame.at(high, recall)
        middle = (left + right) / 2
        ends = [frame.at(high, min(1.0, max(0.0, recall + s * error)))[1] for s in (-1, 1)]
        yield paper.line(left, y, right, y, BLUE, 'stroke-width="4"')
        yield paper.line(middle, ends[0], middle, ends[1], paper.INK)
