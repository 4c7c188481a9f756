"""The tables of the report as plain cells, for the page and for Markdown; nothing is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kdsearch.hpo.statistics import Gain
from kdsearch.report import words
from kdsearch.report.answers import gain_of_one
from kdsearch.space import Params
from kdsearch.spec import TrialRecord
from kdsearch.study.formatting import SPACE, counted, megabytes
from kdsearch.study.summary import Entry, Summary, TeacherEntry, Trainings
from kdsearch.tasks.base import Metric

_Row = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table whose first column names the rows."""

    caption: str
    head: _Row
    rows: tuple[_Row, ...]


def against_teacher(summary: Summary, best: Entry) -> Table:
    """Return the table that compares the training to ship with the teacher; test comes first.

    best: that training itself. Its recipe's mean over seeds has rows of its own.
    """
    metric, teacher, recipe = summary.metric, summary.teacher, summary.best_recipe()
    images = summary.images
    rows: list[_Row] = [
        (
            f"{split} {metric.label}",
            words.estimate(metric, own, count),
            words.estimate(metric, reference, count),
            ""
            if own is None or reference is None
            else f"{words.points(metric, own - reference)}{metric.points}",
        )
        for split, own, reference, count in (
            ("test", best.test, teacher.test, images.test),
            ("validation", best.val, teacher.val, images.val),
        )
    ]
    if recipe is not None:
        rows += [
            (
                f"{split} {metric.label}, mean of {counted(len(recipe.trials), 'seed')}",
                words.spread(metric, spread, unit=True),
                "",
                "",
            )
            for split, spread in (("test", recipe.test), ("validation", recipe.val))
            if spread is not None
        ]
    if summary.file is not None:
        rows.append(("size of student.onnx", megabytes(summary.file.bytes), "", ""))
    rows.append(
        (
            "latency",
            words.latency(best),
            words.latency(teacher),
            words.compared(best.latency_ms, teacher.latency_ms, words.SPEED),
        )
    )
    rows += [
        (
            words.AXES[axis].title,
            words.scaled(value),
            words.scaled(reference),
            words.compared(value, reference),
        )
        for axis, value, reference in (
            ("flops", best.flops, teacher.flops),
            ("params", best.params, teacher.params),
        )
    ]
    who = "The student to ship" if summary.shipped else "The best student so far"
    caption = (
        f"{who}, trial {best.trial}, compared with its teacher, {teacher.name}; \u00b1 one "
        "standard error over images"
    )
    if recipe is not None:
        caption += "; of a mean, the standard deviation of one training (from all refits)"
    head = ("", "student", "teacher", "student to teacher")
    return Table(caption=caption, head=head, rows=tuple(rows))


def front(summary: Summary) -> Table:
    """Return the front, cheapest first, then the teacher and any baseline networks."""
    head = (
        "",
        "method",
        f"validation {summary.metric.label}",
        f"test {summary.metric.label}",
        "latency",
        "FLOPs",
        "parameters",
    )
    rows = [
        (
            _marked(words.trial(entry.trial, entry.config), words.shipping(summary, entry.trial)),
            words.method(entry.config),
            *_measured(summary, entry),
        )
        for entry in summary.front
    ]
    place = summary.teacher_place()
    within = "" if place is None else "within the budget"
    name = _marked(f"teacher {summary.teacher.name}", within)
    at = len(rows) if place is None else place
    rows.insert(at, (name, "", *_measured(summary, summary.teacher)))
    rows += [
        (
            words.network(entry.name),
            "baseline",
            "not trained",
            "not trained",
            words.latency(entry),
            words.scaled(entry.flops),
            words.scaled(entry.params),
        )
        for entry in summary.baselines
    ]
    others = " and baseline networks" if summary.baselines else ""
    caption = f"Best trade-offs, cheapest first, compared with the teacher{others}"
    if summary.images.val:
        caption += "; \u00b1 one standard error"
    if summary.candidates:
        caption += "; scores of the search, before retraining"
    return Table(caption=caption, head=head, rows=tuple(rows))


def gains(summary: Summary, records: Sequence[TrialRecord]) -> Table | None:
    """Return each trial with its controls, the best trial first; None without controls."""
    entries = {entry.trial: entry for entry in (*summary.controls, *summary.front)}
    by_number = {record.number: record for record in records}
    subjects = {record.number: record.control_of for record in records}
    controls: dict[int, list[Entry]] = {}
    for control in summary.controls:
        number = subjects.get(control.trial)
        if number is not None and number in entries:
            controls.setdefault(number, []).append(control)
    if not controls:
        return None
    rows = []
    for number in sorted(controls, key=lambda number: (number != summary.best, number)):
        subject = entries[number]
        ships = words.shipping(summary, number)
        rows.append(_row(summary, _marked(words.trial(number, subject.config), ships), subject))
        for control in controls[number]:
            mark = words.shipping(summary, control.trial)
            title = _marked(f"against control{SPACE}{control.trial}", mark)
            trial = replace(by_number[number], val=subject.val)
            other = replace(by_number[control.trial], val=control.val)
            found = _gains(summary, subject, control, trial, other)
            rows.append(_row(summary, title, control, found))
    head = (
        "",
        "method",
        f"validation {summary.metric.label}",
        words.heading("gain", summary.metric.points),
        f"test {summary.metric.label}",
        words.heading("gain", summary.metric.points),
    )
    caption = (
        "A control trains the same student with another method, at equal cost. The winner was "
        "selected on validation, so its gain there is too high"
    )
    return Table(caption=caption, head=head, rows=tuple(rows))


def candidates(summary: Summary) -> Table | None:
    """Return the retrained trials with their controls; None without refits."""
    if not summary.candidates:
        return None
    metric, rows = summary.metric, list[_Row]()
    for each in summary.candidates:
        config = next(entry.config for entry in summary.front if entry.trial == each.trial)
        title = _marked(words.trial(each.trial, config), *each.roles, _ships(summary, each.trained))
        rows.append((title, *_trained(metric, each.trained), "", "", ""))
        rows += [
            (
                _marked(f"its control, {control.trained.method}", _ships(summary, control.trained)),
                *_trained(metric, control.trained),
                *_gained(metric, control.gain, control.test_gain),
            )
            for control in each.controls
        ]
    rows += [
        (
            f"{counted(entry.candidates, 'retrained trial')} over {entry.over}",
            *("" for _ in range(4)),
            *_gained(metric, entry.gain, entry.test_gain),
        )
        for entry in (summary.gains if len(summary.candidates) > 1 else ())
    ]
    head = (
        "",
        "method",
        words.heading(f"validation {metric.label}", metric.unit),
        words.heading("95 % range of a new seed", metric.unit),
        words.heading(f"test {metric.label}", metric.unit),
        words.heading("gain", metric.points),
        "p",
        words.heading("gain on test", metric.points),
    )
    count = max(len(each.trained.trials) for each in summary.candidates)
    caption = (
        f"Trials retrained with {count} seeds, each compared with the same student trained "
        "another way, same seeds. Mean \u00b1 standard deviation of one training (estimated from "
        "all refits); gains with 95 % intervals from a paired t-test"
    )
    return Table(caption=caption, head=head, rows=tuple(rows))


def _marked(title: str, *marks: str) -> str:
    return ", ".join([title, *filter(None, marks)])


def _ships(summary: Summary, trained: Trainings) -> str:
    return words.ship_mark(summary) if summary.to_ship() in trained.trials else ""


def _trained(metric: Metric, trained: Trainings) -> _Row:
    return (
        trained.method,
        words.spread(metric, trained.val),
        f"{metric.number(trained.val.low)} to {metric.number(trained.val.high)}",
        words.UNKNOWN if trained.test is None else words.spread(metric, trained.test),
    )


def _gained(metric: Metric, gain: Gain, test: Gain | None) -> _Row:
    return (
        words.gain_interval(metric, gain),
        words.chance(gain.p),
        "" if test is None else words.gain_interval(metric, test),
    )


def config(params: Params) -> Table:
    """Return the configuration of one trial."""
    rows = tuple((name, str(value)) for name, value in params.items())
    return Table(caption="", head=("parameter", "value"), rows=rows)


def spent(summary: Summary, records: Sequence[TrialRecord]) -> dict[str, float]:
    """Return the seconds spent on each part, without parts that took no time."""
    searched = [record for record in records if not record.kind]
    parts = {
        "teacher: loading or training": summary.seconds.teacher,
        "teacher: outputs for the students": sum(r.teacher_seconds for r in records),
        "training students (with latency measurement)": _own_seconds(
            r for r in searched if r.state in ("complete", "pruned")
        ),
        "measuring rejected students": _own_seconds(r for r in searched if r.state == "rejected"),
        "failed trials": _own_seconds(r for r in searched if r.state == "failed"),
        "controls": _own_seconds(r for r in records if r.kind == "control"),
        "refits and their controls": _own_seconds(r for r in records if r.refit_of is not None),
        "test split, export, latencies shown": summary.seconds.finish,
    }
    return {name: seconds for name, seconds in parts.items() if seconds > 0}


def _own_seconds(records: Iterable[TrialRecord]) -> float:
    return sum(record.seconds - record.teacher_seconds for record in records)


def _measured(summary: Summary, entry: Entry | TeacherEntry) -> _Row:
    return (
        words.estimate(summary.metric, entry.val, summary.images.val),
        words.estimate(summary.metric, entry.test, summary.images.test),
        words.latency(entry),
        words.scaled(entry.flops),
        words.scaled(entry.params),
    )


def _gains(
    summary: Summary, subject: Entry, control: Entry, trial: TrialRecord, other: TrialRecord
) -> tuple[str, str]:
    """Return the gain of a trial over its control on validation and on test, as cells.

    A control of fewer epochs is compared with the trial after as many, and not on test.
    """
    if summary.is_at_chance(min(subject.val, control.val)):
        return "at chance", "at chance"
    metric, cells = summary.metric, []
    read = {e.trial: e.test for e in (subject, control) if e.test is not None}
    for test in ({}, read):
        found = gain_of_one(metric, summary.images, test, trial, other)
        if found is None or (test and found.split != "test"):
            cells.append("")
            continue
        after = f" after {counted(found.epochs, 'epoch')}" if found.epochs else ""
        cells.append(words.gain(metric, found.difference, found.error) + after)
    return cells[0], cells[1] if read else ""


def _row(summary: Summary, title: str, entry: Entry, gained: tuple[str, str] = ("", "")) -> _Row:
    """Return the row of one trial, with the gains of another over it."""
    return (
        title,
        words.method(entry.config),
        words.estimate(summary.metric, entry.val, summary.images.val),
        gained[0],
        words.estimate(summary.metric, entry.test, summary.images.test),
        gained[1],
    )
