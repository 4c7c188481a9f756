"""What to do next, in sentences, each with the command to type between backticks. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from kdsearch.report import words
from kdsearch.report.answers import NOT_MEASURABLE
from kdsearch.report.findings import about_teacher
from kdsearch.report.undertrained import about_training
from kdsearch.space import Float, Int, is_number
from kdsearch.study.config import resume_command
from kdsearch.study.formatting import SPACE, counted
from kdsearch.study.study import OpenStudy
from kdsearch.study.summary import Entry, Summary

UNUSED = 0.5  # share of a budget below which larger students fit
FEW_TRIALS = 10
_EDGE = 0.01  # of a range


def advice(study: OpenStudy, summary: Summary, command: str) -> tuple[str, ...]:
    """Return the next steps of a study that has shipped a student; nothing before that.

    command: the one that runs the same study. They name the folder that the study is in now, so
    a study does not keep them: each report and each front.json has those of its writing.
    """
    best = summary.shipped
    if best is None:
        return ()
    package, again = study.path / "best", resume_command(study.path)
    longer = about_longer_training(study, package)
    found = (
        *_busy(summary, package),
        *_unused(summary, best),
        *_at_edge(study, best, command),
        *([" ".join(longer)] if longer else []),
        *(f"{line} `kdsearch list teachers`" for line in about_teacher(study, None)),
        *_teacher_below(summary, best),
        *([] if longer else _few(summary, again)),
        *_noise(study, summary, again),
        *_other_points(study.path, summary),
    )
    return tuple(line.replace(SPACE, " ") for line in found)


def about_longer_training(study: OpenStudy, package: Path) -> tuple[str, ...]:
    """Return whether the shipped student was trained too short; nothing before one ships."""
    shipped = [record for record in study.records() if record.number == study.facts.shipped]
    return tuple(
        line
        for record in shipped
        for line in about_training(record, study.metric, study.facts.images, package)
    )


def _busy(summary: Summary, package: Path) -> Iterator[str]:
    if warning := words.busy(summary):
        yield f"{warning} `kdsearch measure {package}/student.onnx`"


def _unused(summary: Summary, best: Entry) -> Iterator[str]:
    """Yield that the budget never limits the search."""
    shares = {axis: words.share(summary.budget, best, axis) for axis in words.AXES}
    known = {axis: share for axis, share in shares.items() if share is not None}
    if known and max(known.values()) < UNUSED:
        axis = max(known, key=lambda name: known[name])
        used = words.digits(float(f"{100 * known[axis]:.2g}"))
        limit = words.amount(axis, getattr(summary.budget, axis))
        yield (
            f"The student uses {used}{SPACE}% of the budget of {limit}: larger students fit. Run "
            "again with a wider --space and another --name. `kdsearch list spaces`"
        )


def _at_edge(study: OpenStudy, best: Entry, command: str) -> Iterator[str]:
    """Yield the parameters of the winner that are at an end of their range."""
    dims = dict(study.config.search_space().all_dims())
    found = [text for name, value in best.config.items() if (text := _edge(dims, name, value))]
    if found:
        name = f" --name {study.name}"
        command = re.sub(r" --space \S+", "", command.removesuffix(name))
        yield (
            f"The winner is at the edge of the space: {', '.join(found)}. Copy the space of "
            "study.yaml to a file, widen these ranges, and search again. "
            f"`{command} --space FILE.yaml{name}-wider`"
        )


def _edge(dims: Mapping[str, object], name: str, value: object) -> str:
    """Return that a value is at an end of its range, '' where it is not."""
    dim = dims.get(name)
    if not isinstance(dim, Int | Float) or not is_number(value, (int, float)):
        return ""
    near = _EDGE * (dim.high - dim.low) if isinstance(dim, Float) else 0
    if value >= dim.high - near:
        return f"{name} {value:.4g} (the highest)"
    return f"{name} {value:.4g} (the lowest)" if value <= dim.low + near else ""


def _teacher_below(summary: Summary, best: Entry) -> Iterator[str]:
    """Yield that the teacher is worse than its student, beyond noise."""
    teacher, metric, images = summary.teacher, summary.metric, summary.images
    split, own, theirs, count = "validation", best.val, teacher.val, images.val
    if best.test is not None and teacher.test is not None:
        split, own, theirs, count = "test", best.test, teacher.test, images.test
    error = words.error_of_difference(metric, own, theirs, count)
    if teacher.knows_all and error is not None and own - theirs > words.NOISE * error:
        yield (
            f"The teacher is worse than its student ({words.score(metric, theirs)} against "
            f"{words.score(metric, own)} on {split}). Look for a better one, and give it by "
            "--teacher. `kdsearch list teachers`"
        )


def _few(summary: Summary, again: str) -> Iterator[str]:
    counts = summary.counts
    ended = counts.complete + counts.pruned + counts.rejected + counts.failed
    if ended < FEW_TRIALS:
        had = counted(ended, "trial")
        yield f"The search had {had}. More may find better: `{again} --trials 20`"


def _other_points(path: Path, summary: Summary) -> Iterator[str]:
    """Yield how to ship another trial of the front."""
    others = [entry.trial for entry in summary.front if entry.trial != summary.best]
    if others:
        shown = ", ".join(map(str, others[-5:]))
        command = resume_command(path).replace("run --name", "ship")
        yield f"To ship another trial of the front ({shown}): `{command} --trial {others[-1]}`"


def _noise(study: OpenStudy, summary: Summary, again: str) -> Iterator[str]:
    """Yield that more seeds narrow whether distillation helped."""
    over = [answer.over for answer in summary.answers if answer.answer == NOT_MEASURABLE]
    if "none" in over:
        refit = study.facts.refit
        seeds = 2 * refit.seeds if refit.count else 3
        yield (
            "Whether distillation helped is within noise. More seeds narrow that: "
            f"`{again} --refit {max(1, refit.count)} --seeds {seeds}`"
        )
