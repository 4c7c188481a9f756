"""The answers of the first screen: metric, cost, size, and whether distillation helped.

Page, report.md and terminal show the same texts. The numbers are those of the shipped file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kdsearch.report import words
from kdsearch.report.answers import NO, YES
from kdsearch.study.formatting import SPACE, counted, megabytes
from kdsearch.study.summary import Answer, Entry, Summary
from kdsearch.tasks.base import Metric

PLUS_MINUS = "\u00b1"
GOOD, BAD = "good", "bad"
_QUESTIONS = {
    "none": ("Did distillation help?", "training without a teacher"),
    "kd": ("Did the search help?", "plain KD at its defaults"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One answer: what it is about, its value, and small print.

    share: of the budget, for a bar. tone: `good` or `bad` news, '' for neither.
    """

    title: str
    value: str
    detail: str = ""
    share: float | None = None
    tone: str = ""


def tiles(summary: Summary) -> tuple[Tile, ...]:
    """Return the answers on the shipped student, or the best so far; empty without one."""
    best = summary.shipped or summary.best_entry()
    if best is None:
        return ()
    found = (_score(summary, best), *_size(summary), *_costs(summary, best))
    return (*found, *(_answer(summary, answer) for answer in summary.answers))


def _score(summary: Summary, best: Entry) -> Tile:
    metric, teacher, images = summary.metric, summary.teacher, summary.images
    label = words.sentence(metric.label)
    if best.test is None:
        against = _against(metric, best.val, teacher.val)
        return Tile(
            title=f"{label} on validation",
            value=words.estimate(metric, best.val, images.val),
            detail=f"{against}; the test set has not been read",
        )
    against = "" if teacher.test is None else f"{_against(metric, best.test, teacher.test)}; "
    error = words.standard_error(metric, best.test, images.test)
    return Tile(
        title=f"{label} on test",
        value=words.estimate(metric, best.test, images.test),
        detail=(
            f"{against}validation {words.score(metric, best.val)}{_of_seeds(summary)}"
            f"{'' if error is None else f'; {PLUS_MINUS}: one standard error'}"
        ),
    )


def _against(metric: Metric, own: float, theirs: float) -> str:
    """Return how far a score is from the teacher's, and the latter."""
    difference = words.points(metric, own - theirs)
    if difference[0] in f"+{words.MINUS}":
        side = "above" if difference[0] == "+" else "below"
        far = f"{difference[1:]}{metric.points} {side}"
    else:
        far = "equal to"
    return f"{far} the teacher's {words.score(metric, theirs)}"


def _of_seeds(summary: Summary) -> str:
    """Return the mean of the shipped recipe on test over its seeds, '' where there is one."""
    recipe = summary.best_recipe()
    if recipe is None or recipe.test is None:
        return ""
    spread = words.spread(summary.metric, recipe.test, unit=True)
    return f"; {spread} over {counted(len(recipe.trials), 'seed')}"


def _costs(summary: Summary, best: Entry) -> Iterator[Tile]:
    """Yield the latency, then FLOPs and parameters, with what they use of a budget."""
    teacher = summary.teacher
    ratio = words.compared(best.latency_ms, teacher.latency_ms, words.SPEED)
    uses = _used(summary, best, "latency_ms")
    target = summary.target
    parts = (
        uses,
        ratio and f"{ratio} than the teacher",
        f"on {target.device}, {counted(target.threads, 'thread')}",
        "machine busy" * words.is_busy(summary),
    )
    yield Tile(
        title="Latency",
        value=words.latency(best),
        detail="; ".join(part for part in parts if part),
        share=words.share(summary.budget, best, "latency_ms"),
        tone=BAD if words.is_busy(summary) else "",
    )
    flops, params = words.amount("flops", best.flops), words.amount("params", best.params)
    shares = [words.share(summary.budget, best, axis) for axis in ("flops", "params")]
    fewer = words.compared(best.flops, teacher.flops)
    found = (
        *(_used(summary, best, axis) for axis in ("flops", "params")),
        fewer and f"{fewer} FLOPs than the teacher",
    )
    yield Tile(
        title="Computation",
        value=f"{flops}, {params}",
        detail="; ".join(part for part in found if part),
        share=max((share for share in shares if share is not None), default=None),
    )


def _used(summary: Summary, best: Entry, axis: str) -> str:
    """Return the share of a budget that a student uses, '' without that budget."""
    share = words.share(summary.budget, best, axis)
    if share is None:
        return ""
    limit = words.amount(axis, getattr(summary.budget, axis))
    return f"uses {words.digits(float(f'{100 * share:.2g}'))}{SPACE}% of {limit}"


def _size(summary: Summary) -> Iterator[Tile]:
    if summary.file is not None:
        size = megabytes(summary.file.bytes)
        yield Tile(title="Size", value=size, detail="student.onnx")


def _answer(summary: Summary, answer: Answer) -> Tile:
    title, control = _QUESTIONS[answer.over]
    value, metric = words.sentence(answer.answer), summary.metric
    if answer.difference is None or answer.low is None or answer.high is None:
        return Tile(title=title, value=value, detail=answer.why)
    ends = (words.points(metric, end) for end in (answer.low, answer.high))
    interval = f"(95{SPACE}%: {' to '.join(ends)})"
    after = f" after {counted(answer.epochs, 'epoch')}" if answer.epochs else ""
    return Tile(
        title=title,
        value=value,
        detail=(
            f"{words.points(metric, answer.difference)}{metric.points} {interval} "
            f"of {answer.split} {metric.label} over {control}{after}"
            f"{'; ' * bool(answer.why)}{answer.why}"
        ),
        tone={YES: GOOD, NO: BAD}.get(answer.answer, ""),
    )
