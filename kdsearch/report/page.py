"""One HTML page that needs nothing but itself: style, script and plotly.js are inlined, once each.

The page forbids itself every request and every script but its own two (content security policy
by hash), so that a name in a study can neither run nor call home. Text is escaped at this border.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from string import Template

from plotly.offline import get_plotlyjs

from kdsearch.report import figures, tables, words
from kdsearch.report.marks import Marks, sort_out
from kdsearch.report.verdict import verdict
from kdsearch.spec import TrialRecord
from kdsearch.summary import Summary

_FILES = {
    "study.yaml": "the request: space, data, teacher, budget, seed, versions",
    "study.db": "every trial (Optuna storage); all else is derived from it",
    "front.json": "the numbers of this page for programs",
    "trials.csv": "one row a trial",
    "trials/": "weights and curve of each trial",
    "best/": "the student to ship: weights, exported file, configuration, model card",
}


def page(
    summary: Summary,
    records: Sequence[TrialRecord],
    *,
    importances: Mapping[str, float],
    notes: Sequence[str],
    command: str,
) -> str:
    """Return the whole page."""
    ordered = sorted(records, key=lambda record: record.number)
    script = _asset("page.js")
    sections = (
        _section("What to ship", _result(summary, ordered)),
        _section("The front", _front(summary, ordered)),
        _section("What distillation gained at equal cost", _gains(summary, ordered, notes)),
        _section("What mattered", _mattered(summary, importances)),
        _section("Learning curves", _curves(summary, ordered)),
        _section("Every trial", _trials(summary, ordered)),
        _section("How to reproduce", _reproduce(summary, command)),
    )
    return Template(_asset("page.html")).substitute(
        policy=_policy(get_plotlyjs(), script),
        title=_escape(f"{summary.study}: kdsearch report"),
        study=_escape(summary.study),
        style=_asset("page.css"),
        sections="\n".join(sections),
        plotly=get_plotlyjs(),
        script=script,
    )


def _result(summary: Summary, records: Sequence[TrialRecord]) -> str:
    parts = [f'<p class="lead">{_escape(verdict(summary, records))}</p>']
    best = summary.best_entry()
    if best is not None:
        parts.append(tables.against_teacher(summary, best))
        parts.append(
            f"<details><summary>Configuration of trial {best.trial}</summary>"
            f"{tables.config(best.config)}</details>"
        )
    parts.append(_paragraph(words.conventions(summary)))
    parts.append(_paragraph(words.tally(summary, records)))
    return "".join(parts)


def _front(summary: Summary, records: Sequence[TrialRecord]) -> str:
    marks = sort_out(summary, records)
    axes = figures.known_axes(marks)
    if not axes:
        return _paragraph("No student has been priced yet, so there is nothing to draw.")
    budgeted = summary.budget.axis()
    drawn = {
        axis: figures.scatter(
            marks, axis=axis, front_axis=budgeted, budget=summary.budget, metric=summary.metric
        )
        for axis in axes
    }
    first = budgeted if budgeted in axes else axes[0]
    payload = {
        **drawn[first].to_plotly_json(),
        "views": {
            axis: {**view, "note": _absent(marks, axis)}
            for axis, view in figures.views(drawn).items()
        },
    }
    buttons = "".join(
        f'<button type="button" data-axis="{axis}" aria-pressed="{str(axis == first).lower()}">'
        f"{words.AXES[axis].name}</button>"
        for axis in axes
    )
    chooser = f'<div class="choice" role="group" aria-label="cost axis"><span>Cost:</span>{buttons}'
    return (
        f"{chooser}</div>"
        + _figure("front", payload, f"validation {summary.metric} of every trial against its cost")
        + f'<p class="note" id="front-note" aria-live="polite">{_escape(_absent(marks, first))}</p>'
        + _paragraph(_legend(summary, marks))
    )


def _legend(summary: Summary, marks: Marks) -> str:
    """Say what the figure's lines and crosses mean, and what has no place in it."""
    failed = words.counted(summary.counts.failed, "failed trial")
    cost = words.AXES[summary.budget.axis()].name
    sentences = (
        (
            marks.front,
            "The line joins the front, the trials that no other beats in both "
            f"{summary.metric} and {cost}; it is drawn over {cost} only.",
        ),
        (marks.links, "A thin line leads from a control to the trial it controls."),
        (marks.stopped, "Trials stopped early stand at the last value they reached."),
        (marks.infeasible, "Crosses along the bottom cost too much and were never trained."),
        (summary.counts.failed, f"{failed} without a place in the figure."),
    )
    return " ".join(text for present, text in sentences if present)


def _absent(marks: Marks, axis: str) -> str:
    """Say what a figure on this axis cannot show."""
    name = words.AXES[axis].name
    parts = []
    if marks.teacher.costs[axis] is None:
        parts.append(f"The teacher is not drawn: its {name} was not measured.")
    placed = {mark.trial: mark.costs[axis] is None for mark in marks.students()}
    if missing := sum(placed.values()):
        parts.append(f"{words.counted(missing, 'trial')} without a measured {name} not drawn.")
    return " ".join(parts)


def _gains(summary: Summary, records: Sequence[TrialRecord], notes: Sequence[str]) -> str:
    table = tables.gains(summary, records)
    why = "No trial on the front has a control, so what distillation gained is not known."
    listed = "".join(f"<li>{_escape(note)}</li>" for note in notes)
    return (table or _paragraph(why)) + (f'<ul class="note">{listed}</ul>' if listed else "")


def _mattered(summary: Summary, importances: Mapping[str, float]) -> str:
    if not importances:
        return _paragraph(
            "Which knob mattered cannot be told: too few trials completed "
            f"({summary.counts.complete:,})."
        )
    text = (
        f"How much of the differences in validation {summary.metric} between completed trials each "
        "knob explains."
    )
    return _paragraph(text) + tables.importances(importances)


def _curves(summary: Summary, records: Sequence[TrialRecord]) -> str:
    if not any(record.curve for record in records):
        return _paragraph("No trial has reached the end of its first epoch.")
    figure = figures.curves(records, best=summary.best, metric=summary.metric)
    step = figures.thinning(records)
    text = f"One line a trial: validation {summary.metric} after each epoch."
    if step > 1:
        text += f" With this many trials only one epoch in {step} and the last are drawn."
    return _figure(
        "curves", figure.to_plotly_json(), "validation curve of every trial"
    ) + _paragraph(text)


def _trials(summary: Summary, records: Sequence[TrialRecord]) -> str:
    if not records:
        return _paragraph("No trial has been run yet.")
    return (
        '<div class="wide tall" tabindex="0" role="region" aria-label="every trial">'
        f"{tables.trials(records, summary.best)}</div>"
    )


def _reproduce(summary: Summary, command: str) -> str:
    spent = {
        "teacher": summary.seconds.teacher,
        "search": summary.seconds.search,
        "final training and controls": summary.seconds.refit,
        "of these two, asking the teacher": summary.seconds.outputs,
    }
    took = ", ".join(f"{name} {words.duration(value)}" for name, value in spent.items() if value)
    wall = summary.seconds.wall
    whole = f"; {words.duration(wall)} in all" if wall else ""
    listed = "".join(
        f"<dt><code>{name}</code></dt><dd>{text}</dd>"
        for name, text in _FILES.items()
        if name != "best/" or summary.best is not None
    )
    return (
        f'<pre tabindex="0"><code>{_escape(command)}</code></pre>'
        f"<p>Study <strong>{_escape(summary.study)}</strong>"
        f"{whole}{f'; summed over trials: {took}' if took else ''}. The same command goes on "
        f"where a study was stopped. Its files lie beside this page:</p><dl>{listed}</dl>"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _paragraph(text: str) -> str:
    return f'<p class="note">{_escape(text)}</p>'


def _figure(name: str, payload: Mapping[str, object], label: str) -> str:
    """Return the place of a figure and its data, which no `<` can end: all but `<br>` go."""
    data = json.dumps(payload, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    data = re.sub("<(?!br>)", r"\\u003c", data)
    return (
        f'<div class="figure" id="{name}" role="figure" aria-label="{_escape(label)}"></div>'
        f'<script type="application/json" id="{name}-data">{data}</script>'
    )


@cache
def _policy(*scripts: str) -> str:
    """Return the policy that lets only these scripts run and nothing be asked for."""
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    )
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "form-action 'none'; base-uri 'none'"
    )


def _asset(name: str) -> str:
    return files("kdsearch.report").joinpath(name).read_text(encoding="utf-8")


def _escape(text: str) -> str:
    return html.escape(text)
