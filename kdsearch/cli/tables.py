"""The tables that commands print."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from functools import partial
from textwrap import TextWrapper
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from kdsearch.errors import printable
from kdsearch.hpo.statistics import Gain
from kdsearch.report import words
from kdsearch.spec import UNITS, Cost
from kdsearch.study.summary import Entry, Summary, TeacherEntry, Trainings
from kdsearch.tasks.base import Metric

if TYPE_CHECKING:
    from kdsearch.report.comparison import Comparison
    from kdsearch.workflows.check_report import CheckReport, MethodCheck

_HEADINGS = {"latency_ms": "ms", "flops": "MFLOPs", "params": "M par."}
_UNBOUND = 1000  # columns, in which a table has the width of its cells
_NAME_WIDTHS = (_UNBOUND, 40, 32, 24, 20, 17, 15, 13, 11, 9)
_PIECES = re.compile(r"[^/.:_+,\s-]*[/.:_+,\s-]+|[^/.:_+,\s-]+")  # of names, with separators


def literal(text: str, style: str = "") -> Text:
    """Return a text as it stands: no markup, no emoji codes, control characters escaped."""
    return Text(printable(text, keep="\n"), style=style)


class TextTable(Table):
    """A table whose title, caption, headings and cells are literal: names come from outside."""

    def __init__(self, *, title: str = "", caption: str = "", **options: Any) -> None:
        super().__init__(
            title=literal(title, "table.title") if title else None,
            caption=literal(caption, "table.caption") if caption else None,
            **options,
        )

    def add_column(self, heading: str, **options: Any) -> None:  # type: ignore[override]
        """Add a column."""
        super().add_column(literal(heading), **options)

    def add_row(self, *cells: str | Text, style: str | None = None) -> None:  # type: ignore[override]
        """Add a row."""
        texts = (literal(cell) if isinstance(cell, str) else cell for cell in cells)
        super().add_row(*texts, style=style)


def cost_text(cost: Cost | Entry, axis: str) -> str:
    """Return one cost with its unit, '-' if unknown."""
    value = getattr(cost, axis)
    if value is None:
        return "-"
    scale, unit = UNITS[axis]
    return f"{value * scale:.3g} {unit}"


def show(*parts: str | RenderableType, console: Console | None = None) -> None:
    """Print lines literally, and tables. On a terminal lines break between words."""
    console = console or Console()
    for part in parts:
        if isinstance(part, str):
            lines = printable(part, keep="\n").split("\n")
            if console.is_terminal:
                lines = [row for line in lines for row in _wrapped(line, console.width)]
            console.print(literal("\n".join(lines)), soft_wrap=True)
        else:
            console.print(part)


def _wrapped(line: str, width: int) -> list[str]:
    """Return a line in rows of at most so many characters; no word, path or flag is cut."""
    indent = "  " if line.startswith("- ") else ""
    wrapper = TextWrapper(
        width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return wrapper.wrap(line) or [""]


class FrontTable:
    """The front, cheapest first, with a star at the best trial; names are whole.

    A terminal that is too narrow gets student and method on two lines, then fewer costs.
    """

    def __init__(self, summary: Summary) -> None:
        self._summary = summary

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the first table that fits."""
        first = self._summary.budget.axis()
        kept = [axis for axis in UNITS if axis == first or axis == "latency_ms"]
        tables = (
            _front(self._summary, axes, is_stacked=is_stacked)
            for axes, is_stacked in ((UNITS, False), (UNITS, True), (kept, True), ([first], True))
        )
        unbound = options.update(width=_UNBOUND)
        for table in tables:
            if Measurement.get(console, unbound, table).maximum <= options.max_width:
                break
        yield table


def _front(summary: Summary, axes: Collection[str], *, is_stacked: bool) -> Table:
    """Return the front with these costs; stacked: student and method in one column."""
    found = f"{len(summary.front)} of {_trials(summary)} trials"
    ships = summary.to_ship()
    star = "shipped" if summary.shipped else "the best so far"
    star += "" if ships == summary.best else f" (weights of trial {ships})"
    table = TextTable(title=f"Front of {summary.study}: {found}; * = {star}")
    metric = summary.metric
    scores = (words.heading("val", metric.unit), words.heading("test", metric.unit))
    for heading in ("trial", *scores, *(_HEADINGS[axis] for axis in axes)):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("student + method",) if is_stacked else ("student", "method"):
        table.add_column(heading, overflow="fold")
    teacher = ("teacher", *_measured(metric, summary.teacher, axes))
    place = summary.teacher_place()
    for i, entry in enumerate(summary.front):
        if i == place:
            table.add_row(*teacher)
        names = (str(entry.config["student.family"]), str(entry.config.get("method.name", "kd")))
        table.add_row(
            f"{entry.trial}{' *' if entry.trial == summary.best else ''}",
            *_measured(metric, entry, axes),
            *(" +\n".join(names),) if is_stacked else names,
            style="bold" if entry.trial == summary.best else None,
        )
    if place == len(summary.front):
        table.add_row(*teacher)
    return table


def _measured(
    metric: Metric, entry: Entry | TeacherEntry, axes: Collection[str]
) -> tuple[str, ...]:
    """Return scores and costs as cells."""
    return (
        metric.number(entry.val),
        "-" if entry.test is None else metric.number(entry.test),
        *(_scaled(entry, axis) for axis in axes),
    )


def _scaled(entry: Entry | TeacherEntry, axis: str) -> str:
    """Return a cost in the unit of its column."""
    value = getattr(entry, axis)
    return "-" if value is None else f"{value * UNITS[axis][0]:.3g}"


def candidates_table(summary: Summary) -> Iterator[Table]:
    """Yield the table of retrained trials and their controls, if there are any."""
    if not summary.candidates:
        return
    count = max(len(each.trained.trials) for each in summary.candidates)
    table = TextTable(
        title=f"Retrained with {count} seeds; controls: same student, same seeds",
        caption="\u00b1: standard deviation of one training; [ ]: 95 %, paired by seed",
    )
    table.add_column("trial", justify="right")
    table.add_column("method", no_wrap=True)
    metric = summary.metric
    scores = (words.heading("val", metric.unit), words.heading("test", metric.unit))
    for heading in (*scores, words.heading("gain", metric.points), "p"):
        table.add_column(heading, justify="right")
    for each in summary.candidates:
        shipped = each.shipped_recipe() if each.trial == summary.best else None
        controls = {id(control.trained): control.gain for control in each.controls}
        for recipe in each.recipes():
            is_shipped, gain = recipe is shipped, controls.get(id(recipe))
            table.add_row(
                f"{each.trial if gain is None else 'control'}{' *' if is_shipped else ''}",
                *_trained(metric, recipe, gain),
                style="bold" if is_shipped else None,
            )
    for entry in summary.gains if len(summary.candidates) > 1 else ():
        gained = (words.gain_interval(metric, entry.gain), words.chance(entry.gain.p))
        table.add_row(f"all {entry.candidates}", f"over {entry.over}", "", "", *gained)
    yield table


def _trained(metric: Metric, trained: Trainings, gain: Gain | None) -> tuple[str, ...]:
    return (
        trained.method,
        words.spread(metric, trained.val),
        "-" if trained.test is None else words.spread(metric, trained.test),
        "" if gain is None else words.gain_interval(metric, gain),
        "" if gain is None else words.chance(gain.p),
    )


def _trials(summary: Summary) -> int:
    counts = summary.counts
    return counts.complete + counts.pruned + counts.rejected + counts.failed


class NameTable:
    """A table in whose long names lines end after a separator where the terminal is narrow.

    made: returns the table for names of at most so many characters a line.
    """

    def __init__(self, made: Callable[[int], Table]) -> None:
        self._made = made

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the first table that fits."""
        unbound = options.update(width=_UNBOUND)
        for most in _NAME_WIDTHS:
            table = self._made(most)
            if Measurement.get(console, unbound, table).maximum <= options.max_width:
                break
        yield table


def in_lines(name: str, most: int) -> str:
    """Return a name in lines of at most so many characters; each ends after a separator."""
    lines = [""]
    for piece in _PIECES.findall(name):
        if lines[-1] and len(lines[-1] + piece) > most:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def check_tables(checked: CheckReport) -> list[RenderableType]:
    """Return the tables of students and methods, after that of calibrated teachers if any."""
    teachers = [NameTable(partial(_teachers_table, checked))] if checked.teachers else []
    return [*teachers, NameTable(partial(_students_table, checked)), _methods_table(checked)]


def _teachers_table(checked: CheckReport, most: int) -> Table:
    table = TextTable(
        title=f"Teacher on {checked.data}, {checked.classes} classes",
        caption="confidence: mean of the largest probabilities; NLL in nats an image; ECE over 15 "
        "bins; best T: temperature of the lowest NLL; plain views",
    )
    table.add_column("teacher", overflow="fold")
    for heading in ("images", checked.metric.label, "confidence", "NLL", "ECE", "best T"):
        table.add_column(heading, justify="right")
    for teacher in checked.teachers:
        for split, found in (("val", teacher.validation), ("train", teacher.train)):
            table.add_row(
                in_lines(teacher.name, most) if split == "val" else "",
                f"{found.images:,} {split}",
                checked.metric.text(found.accuracy),
                f"{100 * found.confidence:.2f} %",
                f"{found.nll:.4f}",
                f"{100 * found.ece:.2f} %",
                "-" if found.temperature is None else f"{found.temperature:.2f}",
            )
    return table


def _students_table(checked: CheckReport, most: int) -> Table:
    flops = "-" if checked.teacher_flops is None else f"{checked.teacher_flops / 1e6:,.2f}"
    table = TextTable(
        title=f"Capacity: teacher {flops} MFLOPs, {checked.teacher_params:,} parameters",
        caption="one multiply-add counts once, batch 1; gap: teacher over student",
    )
    table.add_column("student", overflow="fold")
    for heading in ("knobs", "px", "MFLOPs", "gap", "params", "gap"):
        table.add_column(heading, justify="right")
    for student in checked.students:
        table.add_row(
            in_lines(student.family, most),
            student.size,
            str(student.resolution),
            "-" if student.flops is None else f"{student.flops / 1e6:,.2f}",
            _gap(student.flops_ratio),
            "-" if student.params is None else f"{student.params:,}",
            _gap(student.params_ratio),
        )
    return table


def _gap(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.3g}x" if ratio < 1000 else f"{ratio:,.0f}x"


def _methods_table(checked: CheckReport) -> Table:
    table = TextTable(
        title=f"Methods: one step, batch of {checked.batch_size}",
        caption="tried on the smallest student of each family",
    )
    table.add_column("method", no_wrap=True)
    for heading in ("can be used", "why not"):
        table.add_column(heading, overflow="fold")
    by_method: dict[str, list[MethodCheck]] = {}
    for found in checked.methods:
        by_method.setdefault(found.method, []).append(found)
    for method, tried in by_method.items():
        working = [found.family for found in tried if found.usable]
        reasons: dict[str, list[str]] = {}
        for found in tried:
            if not found.usable:
                reasons.setdefault(found.reason, []).append(found.family)
        usable = "yes" if len(working) == len(tried) else "no" if not working else "in part"
        table.add_row(
            method,
            usable,
            "\n".join(
                reason if len(families) == len(tried) else f"{', '.join(families)}: {reason}"
                for reason, families in reasons.items()
            ),
        )
    return table


def comparison_table(found: Comparison) -> tuple[str | Table, ...]:
    """Return the table of two studies, and notes on its numbers."""
    scale, unit = UNITS[found.axis]
    one, other = found.sides
    table = TextTable(
        caption=f"front: validation {found.metric.label} at {unit}; *: dominated by the other study"
    )
    for heading in ("", one.study, other.study):
        table.add_column(heading, justify="right")
    table.add_row("hypervolume", *(f"{side.hypervolume:.3f}" for side in found.sides))
    for name in ("trials", "trained", "epochs"):
        table.add_row(name, *(f"{getattr(side, name):,}" for side in found.sides))
    table.add_row("seconds of trials", *(f"{side.seconds:,.0f}" for side in found.sides))
    fronts = []
    for side, rival in ((one, other), (other, one)):
        marked = ((val, c, " *" if rival.dominates(val, c) else "") for _, val, c in side.front)
        rows = [f"{found.metric.text(val)} at {c * scale:.3g}{mark}" for val, c, mark in marked]
        fronts.append("\n".join(rows))
    table.add_row("front", *fronts)
    score, cost = found.reference
    notes = [
        f"Hypervolume: share of the area above {found.metric.text(score)} and below "
        f"{cost * scale:.3g} {unit}, up to the best score and the lowest cost of both"
    ]
    if found.targets[0] != found.targets[1]:
        notes.append(
            f"Latencies of different targets are not compared: {one.study} on "
            f"{found.targets[0]}; {other.study} on {found.targets[1]}"
        )
    if found.differs:
        notes.append(f"The configurations differ in {', '.join(found.differs)}")
    return table, *notes
