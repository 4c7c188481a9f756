"""The HTML report: one file with style, script and plotly.js inlined.

Its content security policy forbids every request, and every script but its own two (by hash), so
that no name in a study can run code.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from string import Template

from plotly.offline import get_plotlyjs

from kdsearch.errors import printable
from kdsearch.report import (
    box_figures,
    classes,
    curves,
    figures,
    importance,
    markup,
    search,
    slices,
    tables,
    words,
)
from kdsearch.report.axes import shown_limit
from kdsearch.report.layers import drawing, layer_table
from kdsearch.report.marks import Marks, sort_out
from kdsearch.report.markup import escape, paragraph, section
from kdsearch.report.tiles import tiles
from kdsearch.report.verdict import verdict
from kdsearch.spec import TrialRecord
from kdsearch.study.formatting import counted, duration
from kdsearch.study.ranking import Ranking, shares
from kdsearch.study.summary import Summary
from kdsearch.study.timeline import Span

_FILES = {
    "study.yaml": "the configuration: space, data, teacher, budget, seed, versions",
    "study.db": "all trials (Optuna storage); the other files are derived from it",
    "front.json": "the numbers of this page, for programs",
    "trials.csv": "one row a trial",
    "report.md": "this page in Markdown, with figures/*.svg",
    "trials/": "weights and curve of each trial",
    "best/": "the student to ship: weights, exported file, configuration, model card",
}
_LINKS = {
    "best/student.onnx": "student.onnx",
    "best/README.md": "model card",
    "best/predict.py": "predict.py",
    "best/metrics.json": "metrics.json",
    "trials.csv": "trials.csv",
}


def render(
    summary: Summary,
    records: Sequence[TrialRecord],
    *,
    rankings: Sequence[Ranking],
    notes: Sequence[str],
    command: str,
    picture: bytes = b"",
    spans: Sequence[Span] = (),
) -> str:
    """Return the report as one self-contained HTML page.

    rankings: of the parameters, empty if too few trials completed. notes: the findings. command:
    the command that runs the same study. picture: a PNG of validation images. spans: of trials.
    """
    ordered = sorted(records, key=lambda record: record.number)
    script = _asset("page.js")
    trials = markup.all_trials(summary, ordered) if ordered else paragraph("No trial has run yet.")
    sections = {
        "What to ship": _result(summary, ordered),
        "The front": _front(summary, ordered),
        "What distillation gained at equal cost": _gains(summary, ordered, notes),
        "By class": _classes(summary, picture),
        "The student": _student(summary),
        "The search": _search(summary, ordered, spans),
        "What mattered": _mattered(summary, ordered, rankings),
        "Learning curves": _curves(summary, ordered),
        "Where the time went": _spent(summary, ordered),
        "All trials": trials,
        "How to reproduce": _reproduce(summary, command),
    }
    shown = {title: body for title, body in sections.items() if body}
    return Template(_asset("page.html")).substitute(
        policy=_policy(get_plotlyjs(), script),
        title=_safe(escape(f"{summary.study}: kdsearch report")),
        study=_safe(escape(summary.study)),
        style=_asset("page.css"),
        contents=markup.contents(list(shown)),
        sections=_safe("\n".join(section(title, body) for title, body in shown.items())),
        plotly=get_plotlyjs(),
        script=script,
    )


def _result(summary: Summary, records: Sequence[TrialRecord]) -> str:
    parts = [
        f'<p class="lead">{escape(verdict(summary, records))}</p>',
        markup.warning(words.busy(summary)),
        _screen(summary, records),
    ]
    best = summary.shipped or summary.best_entry()
    if best is not None:
        parts.append(markup.table(tables.against_teacher(summary, best)))
        parts.append(
            f"<details><summary>Configuration of trial {best.trial}</summary>"
            f"{markup.table(tables.config(best.config))}</details>"
        )
    parts.append(paragraph(words.conventions(summary)))
    parts.append(paragraph(words.tally(summary, records)))
    return "".join(parts)


def _screen(summary: Summary, records: Sequence[TrialRecord]) -> str:
    """Return the answers, the files and the next steps, and the front."""
    found = "".join(map(markup.tile, tiles(summary)))
    links = markup.links(_LINKS if summary.file is not None else {})
    answers = f'<div class="tiles">{found}</div>{links}' if found else ""
    figure = _figure(summary, records)
    return (
        f'<div class="screen"><div>{answers}{markup.steps(summary.advice)}</div>'
        f"<div>{figure}</div></div>"
    )


def _figure(summary: Summary, records: Sequence[TrialRecord]) -> str:
    """Return the figure of the front with its buttons, '' before a student is measured."""
    marks = sort_out(summary, records)
    axes = figures.known_axes(marks)
    if not axes:
        return ""
    budgeted = summary.budget.axis()
    drawn = {axis: figures.scatter(summary, marks, axis) for axis in axes}
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
            "front", payload, f"validation {summary.metric.label} of all trials over their cost"
        )
        + f'<p class="note" id="front-note" aria-live="polite">'
        f"{escape(_absent(summary, marks, first))}</p>"
    )


def _front(summary: Summary, records: Sequence[TrialRecord]) -> str:
    """Return the table of the front, how to ship another point, and what the figure means."""
    marks = sort_out(summary, records)
    if not figures.known_axes(marks):
        return paragraph("No student has been measured yet.")
    return (
        markup.table(tables.front(summary))
        + "<details><summary>What the figure shows</summary>"
        + markup.listed(_legend(summary, marks))
        + "</details>"
    )


def _chooser(axes: Sequence[str], first: str, *, has_ranges: bool) -> str:
    """Return the buttons that choose the cost axis and the range."""
    buttons = "".join(
        f'<button type="button" data-axis="{axis}" aria-pressed="{str(axis == first).lower()}">'
        f"{words.AXES[axis].name}</button>"
        for axis in axes
    )
    whole = '<button type="button" id="whole" aria-pressed="false">all trials</button>'
    return (
        '<div class="choice" role="group" aria-label="cost axis and range"><span>Cost:</span>'
        f"{buttons}{whole if has_ranges else ''}</div>"
    )


def _legend(summary: Summary, marks: Marks) -> list[str]:
    """Return what the lines and marks of the figure mean, and what it leaves out."""
    failed = counted(summary.counts.failed, "failed trial")
    cost = words.AXES[summary.budget.axis()].name
    kinds = (marks.dominated, marks.pruned, marks.rejected)
    thinned = any(len(figures.thinned(kind)) < len(kind) for kind in kinds)
    lowest = min(figures.close_up(marks), default=0.0)
    outliers = sum(mark.val is not None and mark.val < lowest for mark in marks.students())
    sentences = (
        (
            marks.front,
            "The line joins the front: the trials that no other trial beats in both "
            f"{summary.metric.label} and {cost}. It is drawn over {cost} only.",
        ),
        (
            summary.images.val,
            f"Vertical bars: one standard error over {summary.images.val or 0:,} images.",
        ),
        (
            any(mark.delay for mark in marks.students()),
            "Horizontal bars: 95 % range of latency over new processes.",
        ),
        (
            marks.refits,
            "Squares: retrained trials, mean over seeds. Diamonds: their controls. "
            "Bars: standard deviation of one training.",
        ),
        (marks.links, "A thin line joins a control and its student."),
        (marks.pruned, "Pruned trials are shown at the last value they reached."),
        (marks.rejected, "Crosses at the bottom: rejected students, over budget, never trained."),
        (
            summary.baselines,
            "Dotted lines: baseline networks, same input and outputs as the students, not trained.",
        ),
        (outliers, f'{counted(outliers, "trial")} below this range: choose "all trials".'),
        (thinned, f"At most {figures.MAX_MARKS:,} marks of each kind off the front are drawn."),
        (summary.counts.failed, f"{failed} not drawn."),
        (True, "Click a point, or its number in the table of trials, to see its configuration."),
    )
    return [text for present, text in sentences if present]


def _absent(summary: Summary, marks: Marks, axis: str) -> str:
    """Return what the figure cannot show on this axis."""
    name = words.AXES[axis].name
    parts = []
    if marks.teacher.costs[axis] is None:
        why = "was not measured" if axis == "latency_ms" else "are not known"
        parts.append(f"The teacher is not drawn: its {name} {why}.")
    placed = {mark.trial: mark.costs[axis] is None for mark in marks.students()}
    if missing := sum(placed.values()):
        parts.append(f"{counted(missing, 'trial')} without a measured {name} not drawn.")
    costs = [mark.costs[axis] for mark in (*marks.students(), marks.teacher)]
    costs += [getattr(entry, axis) for entry in summary.baselines]
    limit = getattr(summary.budget, axis)
    if limit is not None and shown_limit(summary.budget, axis, costs) is None:
        parts.append(f"The budget of {words.amount(axis, limit)} is far to the right.")
    return " ".join(parts)


def _gains(summary: Summary, records: Sequence[TrialRecord], notes: Sequence[str]) -> str:
    found = tables.candidates(summary) or tables.gains(summary, records)
    why = "No trial on the front has a control, so the gain from distillation is not known."
    return (paragraph(why) if found is None else markup.table(found)) + markup.listed(notes)


def _student(summary: Summary) -> str:
    """Return the layers of the shipped student; '' where they are not known."""
    found = layer_table(summary)
    if found is None or summary.file is None:
        return ""
    legend = (
        "A block is as tall as the side of the layer's output and wider for more channels; the "
        "darker, the more of the FLOPs are in it. Percentages: share of the FLOPs."
    )
    return drawing(summary.file.layers) + paragraph(legend) + markup.table(found)


def _classes(summary: Summary, picture: bytes) -> str:
    """Return the scores of the classes, their confusion and the picture; '' without them."""
    parts = [
        markup.image(
            picture, "validation images with their labels and the answers of teacher and student"
        )
    ]
    if (scores := classes.by_class(summary)) is not None:
        parts.insert(0, markup.table(scores))
    parts += [
        markup.image(svg.encode(), box_figures.TITLES[name], kind="svg+xml")
        for name, svg in box_figures.of_summary(summary).items()
    ]
    if (confusion := classes.confusion(summary)) is not None:
        parts.append(
            "<details><summary>Confusion of the classes</summary>"
            f"{markup.table(confusion)}</details>"
        )
    return "".join(parts)


def _search(summary: Summary, records: Sequence[TrialRecord], spans: Sequence[Span]) -> str:
    """Return the progress of the search and its timeline; '' before two trials completed."""
    parts = []
    if (drawn := search.progress(summary, records)) is not None:
        label = f"best validation {summary.metric.label} and hypervolume over trials"
        parts += [
            markup.figure("progress", drawn.to_plotly_json(), label),
            paragraph(
                "The hypervolume is what the front covers: it grows with a better or a cheaper "
                "student. Where both lines are flat, more trials bring little."
            ),
        ]
    if (drawn := search.timeline(records, spans)) is not None:
        pauses = sum(span.after_pause for span in spans)
        cut = f" {counted(pauses, 'pause')} cut out, at the dotted lines." if pauses else ""
        parts += [
            markup.figure("timeline", drawn.to_plotly_json(), "when each trial ran"),
            paragraph(f"One row for each trial that ran at the same time.{cut}"),
        ]
    return "".join(parts)


def _mattered(summary: Summary, records: Sequence[TrialRecord], rankings: Sequence[Ranking]) -> str:
    importances = shares(rankings)
    parts = [importance.section(summary, rankings)]
    if (drawn := search.parallel(summary, records, importances)) is not None:
        what = f"choices, cost and {summary.metric.label} of each completed trial"
        parts += [
            markup.figure("parallel", search.for_both(drawn), what),
            paragraph(
                "One line per completed trial. Low values are at the bottom, on a phone at the "
                "left. Families and methods share the axes of their parameters."
            ),
        ]
    slice_figures = "".join(
        "<div>"
        + markup.figure(
            f"slice-{i}",
            slices.slice_of(summary, records, name).to_plotly_json(),
            f"validation {summary.metric.label} over {name}",
        )
        + "</div>"
        for i, name in enumerate(slices.chosen(importances, records))
    )
    return "".join(parts) + (f'<div class="slices">{slice_figures}</div>' if slice_figures else "")


def _curves(summary: Summary, records: Sequence[TrialRecord]) -> str:
    if not any(record.curve for record in records):
        return paragraph("No trial has completed an epoch yet.")
    figure = curves.curves(summary, records)
    step = curves.thinning(records)
    text = f"One line per trial: validation {summary.metric.label} after each epoch."
    if step > 1:
        text += f" With this many trials, one epoch in {step} and the last one are drawn."
    if summary.stopping in ("safe", "tight"):
        text += (
            f" Dotted lines: the rungs, at which --stopping {summary.stopping} may prune a trial."
        )
    if any(record.state == "pruned" for record in records):
        text += " A cross ends a pruned trial; the table of trials gives the reason."
    return markup.figure(
        "curves", figure.to_plotly_json(), "validation curves of all trials"
    ) + paragraph(text)


def _spent(summary: Summary, records: Sequence[TrialRecord]) -> str:
    parts = tables.spent(summary, records)
    if not parts:
        return paragraph("No time has been recorded yet.")
    total = duration(sum(parts.values()))
    wall = summary.seconds.wall
    clock = f"; wall time of all runs: {duration(wall)}" if wall else ""
    return markup.bars(parts, "seconds of each part", duration) + paragraph(
        f"{total} in all, summed over trials{clock}."
    )


def _reproduce(summary: Summary, command: str) -> str:
    listed = "".join(
        f'<dt><a href="{name}"><code>{name}</code></a></dt><dd>{text}</dd>'
        for name, text in _FILES.items()
        if name != "best/" or summary.shipped is not None
    )
    return (
        f"<p>{markup.command(command)}</p>"
        f"<p>The same command resumes the study <strong>{escape(summary.study)}</strong>. "
        f"Its files are in the folder of this page:</p><dl>{listed}</dl>"
    )


def _safe(text: str) -> str:
    """Escape control characters from outside; the scripts must stay as their hashes say."""
    return printable(text, keep="\n\r\t")


@cache
def _policy(*scripts: str) -> str:
    """Return the policy that allows only these scripts and no request."""
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
