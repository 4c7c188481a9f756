"""What to do next, in sentences, each with the command to type between backticks. No torch.

Commands name the study's folder as FOLDER, so that they stay true where it is renamed; `located`
puts the folder in.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kdsearch.report import words
from kdsearch.report.answers import NO_CONTROL, NOT_MEASURABLE, PASSED
from kdsearch.report.findings import about_teacher
from kdsearch.report.undertrained import about_training
from kdsearch.space import Float, Int, Params, SearchSpace, is_number
from kdsearch.study.formatting import SPACE, counted
from kdsearch.study.study import OpenStudy
from kdsearch.study.summary import Entry, Summary

UNUSED = 0.5  # share of a budget below which larger students fit
FEW_TRIALS = 10
FOLDER = "<study>"  # stands for the study's folder, or in `--name` and `ship` for its name
_WIDER = "-wider"
_AGAIN = f"kdsearch run --name {FOLDER}"
_EDGE = 0.01  # of a range


def advice(study: OpenStudy, summary: Summary, command: str) -> tuple[str, ...]:
    """Return the next steps of a study that has shipped a student; nothing before that.

    command: the one that runs the same study.
    """
    best = summary.shipped
    if best is None:
        return ()
    longer = about_longer_training(study, Path(FOLDER) / "best")
    found = (
        *_unused(summary, best),
        *_at_edge(study, summary, best, command),
        *([" ".join(longer)] if longer else []),
        *(f"{line} `kdsearch list teachers`" for line in about_teacher(study, None)),
        *_teacher_below(summary, best),
        *_passed(summary),
        *([] if longer else _few(summary)),
        *_noise(study, summary),
        *_other_points(summary),
        *_busy(summary),  # the page warns above all else
    )
    return tuple(line.replace(SPACE, " ") for line in found)


def located(texts: Iterable[str], path: Path) -> tuple[str, ...]:
    """Return the steps with the folder of the study in their commands."""
    out = "" if path.parent == Path("results") else f" --out {shlex.quote(str(path.parent))}"

    def named(found: re.Match[str]) -> str:
        return f"{shlex.quote(str(path))}/" if found[1] == "/" else f"{path.name}{found[1]}{out}"

    return tuple(re.sub(f"{FOLDER}(/|{_WIDER}|)", named, text) for text in texts)


def about_longer_training(study: OpenStudy, package: Path) -> tuple[str, ...]:
    """Return whether the shipped student was trained too short; nothing before one ships."""
    shipped = [record for record in study.records() if record.number == study.facts.shipped]
    return tuple(
        line
        for record in shipped
        for line in about_training(record, study.metric, study.facts.images, package)
    )


def _busy(summary: Summary) -> Iterator[str]:
    if warning := words.busy(summary):
        yield f"{warning} `kdsearch measure {FOLDER}/best/student.onnx`"


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


@dataclass(frozen=True, slots=True)
class Edge:
    """A parameter at an end of its range, and the next value beyond that end."""

    name: str
    value: float
    is_highest: bool
    beyond: float

    def __str__(self) -> str:
        """Return the parameter, its value and which end that is."""
        return f"{self.name} {self.value:.4g} (the {'highest' if self.is_highest else 'lowest'})"


def edges(space: SearchSpace, params: Params) -> Iterator[Edge]:
    """Yield the parameters that are at an end of their range."""
    for name, dim in space.all_dims():
        value = params.get(name)
        if not isinstance(dim, Int | Float) or not is_number(value, (int, float)):
            continue
        near = _EDGE * (dim.high - dim.low)
        step, margin = (dim.step, 0.0) if isinstance(dim, Int) else (near or _EDGE, near)
        if value >= dim.high - margin:
            yield Edge(name, value, True, dim.high + step)
        elif value <= dim.low + margin:
            yield Edge(name, value, False, dim.low - step)


def _at_edge(study: OpenStudy, summary: Summary, best: Entry, command: str) -> Iterator[str]:
    """Yield the parameters of the winner at an end of their range that a wider space can move."""
    ends = () if summary.file is None else summary.file.ends
    found = edges(study.config.search_space(), best.config)
    if movable := [str(edge) for edge in found if edge.name not in ends]:
        command = re.sub(r" --(space|out) (?:'[^']*'|\S+)", "", command)
        command = command.removesuffix(f" --name {study.name}")
        yield (
            f"The winner is at the edge of the space: {', '.join(movable)}. Copy the space of "
            "study.yaml to a file, widen these ranges, and search again. "
            f"`{command} --space FILE.yaml --name {FOLDER}{_WIDER}`"
        )


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


def _passed(summary: Summary) -> Iterator[str]:
    """Yield how to know whether a teacher helped a student that has passed it."""
    if any(answer.why == PASSED for answer in summary.answers):
        yield (
            "The student has passed its teacher, so that an early gain says little. Train the same "
            "student without a teacher, and compare. "
            f"`kdsearch distill --config {FOLDER}/best/config.yaml --method none`"
        )


def _few(summary: Summary) -> Iterator[str]:
    counts = summary.counts
    ended = counts.complete + counts.pruned + counts.rejected + counts.failed
    if ended < FEW_TRIALS:
        had = counted(ended, "trial")
        yield f"The search had {had}. More may find better: `{_AGAIN} --trials 20`"


def _other_points(summary: Summary) -> Iterator[str]:
    """Yield how to ship another trial of the front."""
    others = [entry.trial for entry in summary.front if entry.trial != summary.best]
    if others:
        shown = ", ".join(map(str, others[-5:]))
        command = f"kdsearch ship {FOLDER} --trial {others[-1]}"
        yield f"To ship another trial of the front ({shown}): `{command}`"


def _noise(study: OpenStudy, summary: Summary) -> Iterator[str]:
    """Yield how to learn whether distillation helped: controls, or more seeds."""
    if any(answer.over == "none" and answer.why == NO_CONTROL for answer in summary.answers):
        yield (
            "Whether distillation helped is not known, as no control was trained. Retrain the "
            f"student and its controls: `{_AGAIN} --refit 1`"
        )
    over = [answer.over for answer in summary.answers if answer.answer == NOT_MEASURABLE]
    if "none" in over:
        refit = study.facts.refit
        seeds = 2 * refit.seeds if refit.count else 3
        yield (
            "Whether distillation helped is within noise. More seeds narrow that: "
            f"`{_AGAIN} --refit {max(1, refit.count)} --seeds {seeds}`"
        )
