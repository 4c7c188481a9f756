"""The marks of the figures: front, dominated, pruned, rejected, refits, controls, teacher.

Every mark carries all its costs, so that one list serves every cost axis. Hover text is short, for
phones; a click shows the whole configuration. It holds the few tags that plotly renders; whatever
comes from the study is escaped.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kdsearch.report import words
from kdsearch.space import Params
from kdsearch.spec import Cost, TrialRecord
from kdsearch.study.formatting import counted
from kdsearch.study.summary import CandidateEntry, Entry, Summary, TeacherEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One point: `val` is None for a rejected student; `error` is the standard error of `val`.

    delay: the ends of the latency interval, if it is known.
    """

    trial: int | None
    val: float | None
    costs: Mapping[str, float | None]
    hover: str
    error: float | None = None
    delay: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """All points of a study. `links` join a control to its student, refits to their trial.

    refits: means of the retrained trials; with them the controls are means, too.
    """

    front: tuple[Mark, ...]
    dominated: tuple[Mark, ...]
    pruned: tuple[Mark, ...]
    rejected: tuple[Mark, ...]
    refits: tuple[Mark, ...]
    controls: tuple[Mark, ...]
    links: tuple[tuple[Mark, Mark], ...]
    teacher: Mark
    best: tuple[Mark, ...]

    def students(self) -> tuple[Mark, ...]:
        """Return all marks but that of the teacher, each once or more."""
        searched = (*self.front, *self.dominated, *self.pruned, *self.rejected)
        return (*searched, *self.refits, *self.controls)


def escape(text: str) -> str:
    """Escape for plotly, which renders a few tags and knows no `&quot;`."""
    return html.escape(text, quote=False)


def finite(value: float | None) -> float | None:
    """Return None for values that cannot be drawn: unknown, NaN or infinite."""
    return value if value is not None and math.isfinite(value) else None


def sort_out(summary: Summary, records: Sequence[TrialRecord]) -> Marks:
    """Return the marks of a study. Front, refits and controls come from the summary."""
    front = tuple(_from_entry(summary, entry, "on the front") for entry in summary.front)
    placed = {mark.trial for mark in front}
    rest = [record for record in records if record.number not in placed and not record.kind]
    dominated = _from_records(summary, rest, "complete")
    drawn = {mark.trial: mark for mark in (*dominated, *front)}
    subjects = {record.number: record.control_of for record in records}
    controls, refits, links = [], [], []
    for entry in summary.controls:
        subject = subjects.get(entry.trial)
        role = "control" if subject is None else f"control of trial {subject}"
        controls.append(_from_entry(summary, entry, role))
        links += [(controls[-1], drawn[subject])] if subject in drawn else []
    for each in summary.candidates:
        own, *others = _averages(summary, each)
        refits.append(own)
        controls += others
        links += [(own, drawn[each.trial]), *((mark, own) for mark in others)]
    return Marks(
        front=front,
        dominated=dominated,
        pruned=_from_records(summary, rest, "pruned"),
        rejected=_from_records(summary, rest, "rejected"),
        refits=tuple(refits),
        controls=tuple(controls),
        links=tuple(links),
        teacher=_teacher(summary),
        best=tuple(m for m in (*front, *refits, *controls) if m.trial == summary.to_ship()),
    )


def _averages(summary: Summary, candidate: CandidateEntry) -> Iterator[Mark]:
    """Yield the means of a retrained trial and of its controls over several seeds.

    The trial of a mark is one of its trainings: the shipped one, or the first.
    """
    (entry,) = (entry for entry in summary.front if entry.trial == candidate.trial)
    number, metric, label = f"trial {candidate.trial}", summary.metric, summary.metric.label
    for recipe in candidate.recipes():
        is_own, ships = recipe is candidate.trained, summary.to_ship()
        is_shipped = candidate.trial == summary.best and ships in recipe.trials
        lines = [f"validation {label} {words.spread(metric, recipe.val, unit=True)}"]
        if recipe.test is not None:
            lines.append(f"test {label} {words.spread(metric, recipe.test, unit=True)}")
        lines += _cost_lines(entry)
        who = f"{number} retrained" if is_own else f"control of {number} retrained"
        yield Mark(
            trial=ships if is_shipped else recipe.trials[0],
            val=recipe.val.mean,
            costs=words.costs(entry),
            error=recipe.val.sd,
            delay=_delay(entry),
            hover=_hover(
                f"{who}, {counted(len(recipe.trials), 'seed')}",
                lines,
                {**entry.config, "method.name": recipe.method},
            ),
        )


def _from_entry(summary: Summary, entry: Entry, role: str) -> Mark:
    metric, images = summary.metric, summary.images.val
    test = [] if entry.test is None else [f"test {metric.label} {words.score(metric, entry.test)}"]
    return Mark(
        trial=entry.trial,
        val=finite(entry.val),
        costs=words.costs(entry),
        error=words.standard_error(metric, entry.val, images),
        delay=_delay(entry),
        hover=_hover(
            f"trial {entry.trial}, {role}",
            [
                f"validation {metric.label} {words.estimate(metric, entry.val, images)}",
                *test,
                *_cost_lines(entry),
            ],
            entry.config,
        ),
    )


def _from_records(summary: Summary, records: Iterable[TrialRecord], state: str) -> tuple[Mark, ...]:
    """Return a mark for every record in that state with a cost and, if trained, a score."""
    found, metric = [], summary.metric
    for record in records:
        val = _last_val(record)
        if record.state != state or record.cost is None or (state != "rejected" and val is None):
            continue
        reason = words.clipped(words.reason(record), 120)
        lines = [reason] if reason else []
        if val is not None:
            when = f" after epoch {len(record.curve)}" if state == "pruned" else ""
            lines.append(f"validation {metric.label} {words.score(metric, val)}{when}")
        lines += _cost_lines(record.cost)
        found.append(
            Mark(
                trial=record.number,
                val=val,
                costs=words.costs(record.cost),
                delay=_delay(record.cost),
                hover=_hover(f"trial {record.number}, {words.STATES[state]}", lines, record.params),
            )
        )
    return tuple(found)


def _delay(cost: Cost | Entry) -> tuple[float, float] | None:
    low, high = finite(cost.latency_low_ms), finite(cost.latency_high_ms)
    return None if low is None or high is None else (low, high)


def _last_val(record: TrialRecord) -> float | None:
    if record.state == "rejected":
        return None
    if record.state == "pruned" and record.curve:
        return finite(record.curve[-1])
    return finite(record.val)


def _teacher(summary: Summary) -> Mark:
    teacher, metric, images = summary.teacher, summary.metric, summary.images.val
    return Mark(
        trial=None,
        val=finite(teacher.val),
        costs=words.costs(teacher),
        error=words.standard_error(metric, teacher.val, images),
        hover=_hover(
            f"teacher {teacher.name}{'' if summary.teacher_place() is None else ', on the front'}",
            [
                f"validation {metric.label} {words.estimate(metric, teacher.val, images)}",
                *_cost_lines(teacher),
            ],
            {},
        ),
    )


def _cost_lines(owner: Cost | Entry | TeacherEntry) -> list[str]:
    known = {a: v for a, v in words.costs(owner).items() if a != "latency_ms" and v is not None}
    return [f"latency {words.latency(owner)}", *(words.amount(a, v) for a, v in known.items())]


def _hover(title: str, lines: Sequence[str], params: Params) -> str:
    kind = " + ".join(part for part in (words.family(params), words.method(params)) if part)
    text = "<br>".join(escape(line) for line in (*lines, words.clipped(kind, 60)) if line)
    return f"<b>{escape(title)}</b><br>{text}"
