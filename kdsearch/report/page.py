"""One HTML page that needs nothing but itself: style, script and plotly.js are inlined, once each.

The page forbids itself every request and every script but its own two (content security policy
by hash), so that a name in a study can neither run nor call home.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from string import Template

from plotly.offline import get_plotlyjs

from kdsearch.report import curves, figures, markup, slices, tables, words
from kdsearch.report.axes import shown_limit
from kdsearch.report.marks import Marks, sort_out
from kdsearch.report.markup import escape, paragraph, section
from kdsearch.report.verdict import verdict
from kdsearch.spec import TrialRecord
from kdsearch.study.formatting import counted, duration
from kdsearch.study.summary import Summary

_FILES = {
    "study.yaml": "the request: space, data, teacher, budget, seed, versions",
    "study.db": "every trial (Optuna storage); all else is derived from it",
    "front.json": "the numbers of this page for programs",
    "trials.csv": "one row a trial",
    "report.md": "this page in Markdown, with figures/*.svg",
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
        section("What to ship", _result(summary, ordered)),
        section("The front", _front(summary, ordered)),
        section("What distillation gained at equal cost", _gains(summary, ordered, notes)),
        section("What mattered", _mattered(summary, ordered, importances)),
        section("Learning curves", _curves(summary, ordered)),
        section("Where the time went", _spent(summary, ordered)),
        section("Every trial", _trials(summary, ordered)),
        section("How to reproduce", _reproduce(summary, command)),
    )
    return Template(_asset("page.html")).substitute(
        policy=_policy(get_plotlyjs(), script),
        title=escape(f"{summary.study}: kdsearch report"),
        study=escape(summary.study),
        style=_asset("page.css"),
        sections="\n".join(sections),
        plotly=get_plotlyjs(),
        script=script,
    )


def _result(summary: Summary, records: Sequence[TrialRecord]) -> str:
    parts = [f'<p class="lead">{escape(verdict(summary, records))}</p>']
    best = summary.stated_best()
    if best is not None:
        parts.append(markup.table(tables.against_teacher(summary, best)))
        parts.append(
            f"<details><summary>Configuration of trial {best.trial}</summary>"
            f"{markup.table(tables.config(best.config))}</details>"
        )
    parts.append(paragraph(words.conventions(summary)))
    parts.append(paragraph(words.tally(summary, records)))
    return "".join(parts)


def _front(summary: Summary, records: Sequence[TrialRecord]) -> str:
    marks = sort_out(summary, records)
    axes = figures.known_axes(marks)
    if not axes:
        return paragraph("No student has been priced yet, so there is nothing to draw.")
    budgeted = summary.budget.axis()
    drawn = {
        axis: figures.scatter(
            marks,
            axis=axis,
            front_axis=budgeted,
            budget=summary.budget,
            metric=summary.metric,
            shelf=summary.shelf,
        )
        for axis in axes
    }
    first = budgeted if budgeted in axes else axes[0]
    close, whole = tuple(drawn[first].layout.yaxis.range), figures.whole(marks)
    ranges = {"close": close, "whole": whole} if whole[0] < close[0] else {}
    payload = {
        **drawn[first].to_plotly_json(),
        "ranges": ranges,
        "views": {
            axis: {**view, "note": _absent(summary, marks, axis)}
            for axis, view in figures.views(drawn).items()
        },
    }
    return (
        _chooser(axes, first, has_ranges=bool(ranges))
        + markup.figure(
            "front", payload, f"validation {summary.metric} of every trial against its cost"
        )
        + f'<p class="note" id="front-note" aria-live="polite">'
        f"{escape(_absent(summary, marks, first))}</p>"
        + markup.listed(_legend(summary, marks))
        + markup.table(tables.front(summary))
    )


def _chooser(axes: Sequence[str], first: str, *, has_ranges: bool) -> str:
    """Return the buttons that choose the cost, and one that shows all accuracies."""
    buttons = "".join(
        f'<button type="button" data-axis="{axis}" aria-pressed="{str(axis == first).lower()}">'
        f"{words.AXES[axis].name}</button>"
        for axis in axes
    )
    whole = '<button type="button" id="whole" aria-pressed="false">low accuracies too</button>'
    return (
        f'<div class="choice" role="group" aria-label="what the figure shows"><span>Cost:</span>'
        f"{buttons}{whole if has_ranges else ''}</div>"
    )


def _legend(summary: Summary, marks: Marks) -> list[str]:
    """Say what the figure's lines and crosses mean, and what has no place in it."""
    failed = counted(summary.counts.failed, "failed trial")
    cost = words.AXES[summary.budget.axis()].name
    kinds = (marks.dominated, marks.stopped, marks.rejected)
    thinned = any(len(figures.thinned(kind)) < len(kind) for kind in kinds)
    lowest = min(figures.close_up(marks), default=0.0)
    strays = sum(mark.val is not None and mark.val < lowest for mark in marks.students())
    sentences = (
        (
            marks.front,
            "The line joins the front, the trials that no other beats in both "
            f"{summary.metric} and {cost}; it is drawn over {cost} only.",
        ),
        (
            summary.images.val,
            f"Upright bars are one binomial standard error of {summary.images.val or 0:,} images.",
        ),
        (
            any(mark.delay for mark in marks.students()),
            "Level bars are where 95 % of further processes find the latency.",
        ),
        (
            marks.refits,
            "Squares are what candidates come to under several seeds, and diamonds their controls, "
            "with the standard deviation of one training.",
        ),
        (marks.links, "A thin line leads from a control to what it controls."),
        (marks.stopped, "Trials stopped early stand at the last value they reached."),
        (marks.rejected, "Crosses along the bottom cost too much and were never trained."),
        (
            summary.shelf,
            "Dotted lines are common networks with the classes and at the size of this data, "
            "measured as the students are; they were not trained, so only their cost is known.",
        ),
        (strays, f"{counted(strays, 'low trial')} below the first view."),
        (thinned, f"Of each kind off the front at most {figures.MAX_MARKS:,} are drawn, evenly."),
        (summary.counts.failed, f"{failed} without a place in the figure."),
        (True, "A click on a point shows its choices, as does its number in the table of trials."),
    )
    return [text for present, text in sentences if present]


def _absent(summary: Summary, marks: Marks, axis: str) -> str:
    """Say what a figure on this axis cannot show."""
    name = words.AXES[axis].name
    parts = []
    if marks.teacher.costs[axis] is None:
        parts.append(f"The teacher is not drawn: its {name} was not measured.")
    placed = {mark.trial: mark.costs[axis] is None for mark in marks.students()}
    if missing := sum(placed.values()):
        parts.append(f"{counted(missing, 'trial')} without a measured {name} not drawn.")
    costs = [mark.costs[axis] for mark in (*marks.students(), marks.teacher)]
    costs += [getattr(entry, axis) for entry in summary.shelf]
    limit = getattr(summary.budget, axis)
    if limit is not None and shown_limit(summary.budget, axis, costs) is None:
        parts.append(f"The budget of {words.amount(axis, limit)} lies far to the right.")
    return " ".join(parts)


def _gains(summary: Summary, records: Sequence[TrialRecord], notes: Sequence[str]) -> str:
    found = tables.candidates(summary) or tables.gains(summary, records)
    why = "No trial on the front has a control, so what distillation gained is not known."
    return (paragraph(why) if found is None else markup.table(found)) + markup.listed(notes)


def _mattered(
    summary: Summary, records: Sequence[TrialRecord], importances: Mapping[str, float]
) -> str:
    if importances:
        ranked = dict(sorted(importances.items(), key=lambda item: -item[1]))
        told = paragraph(
            f"How much of the differences in validation {summary.metric} between completed trials "
            "each choice explains (PED-ANOVA)."
        ) + markup.bars(ranked, "importance of each choice", lambda value: f"{value:.3f}")
    else:
        told = paragraph(
            "Which choice mattered cannot be told: too few trials completed "
            f"({summary.counts.complete:,})."
        )
    drawn = "".join(
        "<div>"
        + markup.figure(
            f"slice-{i}",
            slices.slice_of(
                records, name, best=summary.to_ship(), metric=summary.metric
            ).to_plotly_json(),
            f"validation {summary.metric} against {name}",
        )
        + "</div>"
        for i, name in enumerate(slices.chosen(importances, records))
    )
    return told + (f'<div class="slices">{drawn}</div>' if drawn else "")


def _curves(summary: Summary, records: Sequence[TrialRecord]) -> str:
    if not any(record.curve for record in records):
        return paragraph("No trial has reached the end of its first epoch.")
    has_rungs = summary.stopping != "off"
    figure = curves.curves(records, best=summary.to_ship(), metric=summary.metric, rungs=has_rungs)
    step = curves.thinning(records)
    text = f"One line a trial: validation {summary.metric} after each epoch."
    if step > 1:
        text += f" With this many trials only one epoch in {step} and the last are drawn."
    if has_rungs:
        text += f" Dotted lines are the rungs at which the rule {summary.stopping} judges trials."
    if any(record.state == "pruned" for record in records):
        text += " A cross ends a trial that was stopped; the table of trials says why."
    return markup.figure(
        "curves", figure.to_plotly_json(), "validation curve of every trial"
    ) + paragraph(text)


def _spent(summary: Summary, records: Sequence[TrialRecord]) -> str:
    parts = tables.spent(summary, records)
    if not parts:
        return paragraph("Nothing has been timed yet.")
    total = duration(sum(parts.values()))
    wall = summary.seconds.wall
    clock = f"{duration(wall)} over all runs" if wall else "several at a time take less"
    return markup.bars(parts, "seconds of each part", duration) + paragraph(
        f"{total} in all, added up over trials; by the clock: {clock}."
    )


def _trials(summary: Summary, records: Sequence[TrialRecord]) -> str:
    if not records:
        return paragraph("No trial has been run yet.")
    return markup.all_trials(records, summary.to_ship())


def _reproduce(summary: Summary, command: str) -> str:
    listed = "".join(
        f"<dt><code>{name}</code></dt><dd>{text}</dd>"
        for name, text in _FILES.items()
        if name != "best/" or summary.best is not None
    )
    return (
        f'<pre tabindex="0"><code>{escape(command)}</code></pre>'
        f"<p>The same command goes on where the study <strong>{escape(summary.study)}</strong> was "
        f"stopped. Its files lie beside this page:</p><dl>{listed}</dl>"
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
