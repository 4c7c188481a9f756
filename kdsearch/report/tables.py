"""The report's tables, as HTML. Every value is escaped here, whatever it is."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

from kdsearch.report import words
from kdsearch.space import Params
from kdsearch.spec import TrialRecord
from kdsearch.summary import Entry, Summary

MAX_REASON = 160  # characters; trials.csv holds the whole
_TRIAL_COLUMNS = (  # title, whether it is a number
    ("trial", True),
    ("state", False),
    ("family", False),
    ("method", False),
    ("validation, %", True),
    ("latency, ms", True),
    ("MFLOPs", True),
    ("parameters", True),
    ("seconds", True),
    ("remark", False),
)


def against_teacher(summary: Summary, best: Entry) -> str:
    """Return student and teacher side by side."""
    teacher = summary.teacher
    rows = [
        (
            f"validation {summary.metric}",
            words.percent(best.val),
            words.percent(teacher.val),
            f"{words.points(best.val - teacher.val)} points",
        ),
        (
            f"test {summary.metric}",
            words.percent(best.test),
            words.percent(teacher.test),
            ""
            if best.test is None or teacher.test is None
            else f"{words.points(best.test - teacher.test)} points",
        ),
        (
            "latency",
            words.latency(best),
            words.amount("latency_ms", teacher.latency_ms),
            words.compared(best.latency_ms, teacher.latency_ms).replace("fewer", "less"),
        ),
        *(
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
        ),
    ]
    head = ("", f"student, trial {best.trial}", f"teacher, {teacher.name}", "student to teacher")
    return _table("The student to ship against its teacher", head, rows)


def gains(summary: Summary, records: Sequence[TrialRecord]) -> str:
    """Return every control beside the trial it controls, the best's first; '' without a pair."""
    entries = {entry.trial: entry for entry in (*summary.controls, *summary.front)}
    subjects = {record.number: record.control_of for record in records}
    controls: dict[int, list[Entry]] = {}
    for control in summary.controls:
        number = subjects.get(control.trial)
        if number is not None and number in entries:
            controls.setdefault(number, []).append(control)
    if not controls:
        return ""
    rows = []
    for number in sorted(controls, key=lambda number: (number != summary.best, number)):
        subject = entries[number]
        rows.append(_row(words.trial(number, subject.config), subject))
        rows += [
            _row(f"against control{words.SPACE}{control.trial}", control, subject)
            for control in controls[number]
        ]
    head = (
        "",
        "method",
        "FLOPs",
        f"validation {summary.metric}",
        "gain, points",
        f"test {summary.metric}",
        "gain, points",
    )
    return _table("A control trains the student of another trial by another method", head, rows)


def _row(title: str, entry: Entry, subject: Entry | None = None) -> tuple[str, ...]:
    """Return one trial's numbers, and what `subject` gained over it."""
    val_gain = test_gain = ""
    if subject is not None:
        val_gain = words.points(subject.val - entry.val)
        if subject.test is not None and entry.test is not None:
            test_gain = words.points(subject.test - entry.test)
    return (
        title,
        words.method(entry.config),
        words.scaled(entry.flops),
        words.percent(entry.val),
        val_gain,
        words.percent(entry.test),
        test_gain,
    )


def importances(values: Mapping[str, float]) -> str:
    """Return horizontal bars, the longest first."""
    longest = max(values.values()) or 1.0
    rows = "".join(
        f'<tr><th scope="row">{_escape(name).replace(".", ".<wbr>")}</th><td class="bar">'
        f'<span style="width:{100 * max(0.0, value) / longest:.1f}%"></span></td>'
        f'<td class="n">{value:.3f}</td></tr>'
        for name, value in sorted(values.items(), key=lambda item: -item[1])
    )
    return f'<table class="bars" aria-label="importance of each knob">{rows}</table>'


def config(params: Params) -> str:
    """Return the knobs of one trial."""
    return _table("", ("knob", "value"), [(name, str(value)) for name, value in params.items()])


def trials(records: Iterable[TrialRecord], best: int | None) -> str:
    """Return all trials in a table whose header cells hold the buttons that sort it."""
    head = "".join(
        f'<th scope="col"{_class(is_number)}><button type="button">{title}</button></th>'
        for title, is_number in _TRIAL_COLUMNS
    )
    body = "\n".join(_trial(record, best) for record in records)
    return (
        '<table class="sortable" aria-label="every trial; the buttons in the header sort">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    )


def _trial(record: TrialRecord, best: int | None) -> str:
    cost = record.cost
    values = (
        str(record.number),
        record.state,
        words.family(record.params),
        words.method(record.params),
        "" if record.val is None else f"{100 * record.val:.2f}",
        "" if cost is None or cost.latency_ms is None else f"{cost.latency_ms:.3f}",
        "" if cost is None or cost.flops is None else f"{cost.flops / 1e6:.3f}",
        "" if cost is None or cost.params is None else f"{cost.params:,}",
        f"{record.seconds:.1f}",
        _remark(record, best),
    )
    cells = "".join(
        f"<td{_class(is_number)}>{_escape(value)}</td>"
        for value, (_, is_number) in zip(values, _TRIAL_COLUMNS, strict=True)
    )
    return f"<tr{' class=best' if record.number == best else ''}>{cells}</tr>"


def _remark(record: TrialRecord, best: int | None) -> str:
    parts = ["to ship"] if record.number == best else []
    if record.control_of is not None:
        parts.append(f"control of trial {record.control_of}")
    if record.reused_from is not None:
        parts.append(f"equals trial {record.reused_from}, not trained again")
    if reason := words.reason(record):
        parts.append(words.clipped(reason, MAX_REASON))
    return "; ".join(parts)


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    title = f"<caption>{_escape(caption)}</caption>" if caption else ""
    top = "".join(f'<th scope="col">{_escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{_escape(first)}</th>'
        + "".join(f"<td>{_escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return (
        f'<div class="wide" tabindex="0"><table>{title}<thead><tr>{top}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _class(is_number: bool) -> str:
    return " class=n" if is_number else ""


def _escape(text: str) -> str:
    return html.escape(text)
