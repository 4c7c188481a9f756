"""Pieces of HTML. Every value is escaped here."""

from __future__ import annotations

import base64
import html
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from kdsearch.report import trials
from kdsearch.report.tables import Table
from kdsearch.report.tiles import Tile
from kdsearch.spec import TrialRecord
from kdsearch.study.formatting import SPACE, counted
from kdsearch.study.ranking import Importance
from kdsearch.study.summary import Summary

_HYPHENS = re.compile(r"\S*-\S*")  # browsers break a line after a hyphen
_FLAG = re.compile(r"--\w[\w-]*")
_BRACKETS = re.compile(r"\([^()]{1,24}\)")
_KINDS = ("trial", "rejected candidate", "control", "refit", "refitted control")


def escape(text: str) -> str:
    """Escape text for HTML."""
    return html.escape(text)


def prose(text: str) -> str:
    """Return text in HTML: code between backticks, and flags that do not break."""
    parts = (
        f"<code>{_whole(_HYPHENS, part)}</code>" if i % 2 else _whole(_FLAG, part)
        for i, part in enumerate(text.split("`"))
    )
    return "".join(parts)


def _whole(pattern: re.Pattern[str], text: str) -> str:
    """Return text in HTML whose matches go to a line of their own before they break."""
    return pattern.sub(r'<span class="whole">\g<0></span>', escape(text))


def anchor(title: str) -> str:
    """Return the anchor of a section."""
    return title.lower().replace(" ", "-")


def section(title: str, body: str) -> str:
    """Return one section of the page."""
    return f'<section id="{anchor(title)}"><h2>{title}</h2>{body}</section>'


def contents(titles: Sequence[str]) -> str:
    """Return links to sections."""
    links = "".join(f'<a href="#{anchor(title)}">{title}</a>' for title in titles)
    return f'<nav aria-label="contents">{links}</nav>'


def tile(content: Tile) -> str:
    """Return one answer of the first screen, with a bar for its share of the budget."""
    bar = ""
    if content.share is not None:
        width = f"{100 * min(1.0, content.share):.1f}"
        bar = f'<div class="meter" aria-hidden="true"><span style="width:{width}%"></span></div>'
    detail = f"<dd>{_whole(_BRACKETS, content.detail)}</dd>" if content.detail else ""
    return (
        f'<dl class="tile {content.tone}"><dt>{escape(content.title)}</dt>'
        f"<dd><strong>{_whole(_BRACKETS, content.value)}</strong></dd>{bar}{detail}</dl>"
    )


def command(text: str) -> str:
    """Return a command with a button that copies it."""
    return (
        f'<span class="command"><code>{_whole(_HYPHENS, text)}</code>'
        '<button type="button" class="copy">Copy</button></span>'
    )


def steps(texts: Sequence[str]) -> str:
    """Return a list of sentences with commands between backticks, '' for no texts."""
    items = ""
    for text in texts:
        parts = text.replace(" %", f"{SPACE}%").split("`")
        shown = (command(part) if i % 2 else prose(part) for i, part in enumerate(parts))
        items += f"<li>{''.join(shown)}</li>"
    return f'<aside class="next"><h3>Next</h3><ul>{items}</ul></aside>' if items else ""


def warning(text: str) -> str:
    """Return a warning that is plain to see, '' for no text."""
    return f'<p class="warning" role="note">{prose(text)}</p>' if text else ""


def links(files: Mapping[str, str]) -> str:
    """Return links to files in the folder of the page, by their paths. Values: what they are."""
    found = (f'<a href="{path}">{escape(what)}</a>' for path, what in files.items())
    return f'<p class="files">{" ".join(found)}</p>' if files else ""


def paragraph(text: str) -> str:
    """Return a paragraph of small print, '' for no text."""
    return f'<p class="note">{prose(text)}</p>' if text else ""


def listed(texts: Sequence[str]) -> str:
    """Return a list in small print, '' for no texts."""
    items = "".join(f"<li>{prose(text)}</li>" for text in texts)
    return f'<ul class="note">{items}</ul>' if items else ""


def table(content: Table) -> str:
    """Return a table in a region that scrolls sideways."""
    # the span is never wider than the screen, even if the table is
    caption = escape(content.caption.replace("\u00b1 ", f"\u00b1{SPACE}"))
    title = f"<caption><span>{caption}</span></caption>" if caption else ""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in content.head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in content.rows
    )
    label = escape(content.caption or "table")
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{label}"><table>{title}'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def image(content: bytes, label: str, kind: str = "png") -> str:
    """Return an image within the page, '' for no bytes."""
    if not content:
        return ""
    encoded = base64.b64encode(content).decode()
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(label)}">'
        f'<img class="strip" src="data:image/{kind};base64,{encoded}" alt="{escape(label)}"></div>'
    )


def bars(values: Mapping[str, float], label: str, write: Callable[[float], str]) -> str:
    """Return horizontal bars in the given order, each with its name and its value."""
    longest = max(values.values()) or 1.0
    rows = "".join(
        f'<tr><th scope="row">{escape(name).replace(".", ".<wbr>")}</th><td class="bar">'
        f'<span style="width:{100 * max(0.0, value) / longest:.1f}%"></span></td>'
        f'<td class="n">{escape(write(value))}</td></tr>'
        for name, value in values.items()
    )
    return f'<table class="bars" aria-label="{escape(label)}">{rows}</table>'


def ranked(values: Sequence[Importance], label: str, longest: float) -> str:
    """Return horizontal bars with whiskers, in the given order. longest: what fills a row."""

    def place(value: float) -> str:
        return f"{100 * min(1.0, value / (longest or 1.0)):.1f}%"

    rows = "".join(
        f'<tr><th scope="row">{escape(item.name).replace(".", ".<wbr>")}</th><td class="bar">'
        f'<span style="width:{place(item.share)}"></span><i style="left:{place(item.low)};'
        f'right:calc(100% - {place(item.high)})"></i></td>'
        f'<td class="n">{item.share:.2f}</td></tr>'
        for item in values
    )
    return f'<table class="bars ranked" aria-label="{escape(label)}">{rows}</table>'


def figure(name: str, payload: Mapping[str, object], label: str) -> str:
    """Return the element of a figure and its data."""
    small = " small" if name.startswith("slice") else ""
    return (
        f'<div class="figure{small}" id="{name}" role="figure" aria-label="{escape(label)}"></div>'
        + data(name, payload)
    )


def data(name: str, payload: Mapping[str, object]) -> str:
    """Return data for the script of the page; escape every `<` but that of `<br>`."""
    text = json.dumps(payload, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    text = re.sub("<(?!br>)", r"\\u003c", text)
    return f'<script type="application/json" id="{name}-data">{text}</script>'


def all_trials(summary: Summary, records: Sequence[TrialRecord]) -> str:
    """Return the table of trials with its filter, sort buttons and dialog."""
    head = "".join(
        f'<th scope="col"{_class(is_number)}><button type="button">{title}</button></th>'
        for title, is_number in trials.columns(summary.metric)
    )
    body = "\n".join(_trial(summary, record) for record in records[: trials.STATIC_ROWS])
    return (
        '<div class="choice"><label for="filter">Filter</label><input type="search" id="filter" '
        'placeholder="such as: resnet complete" autocomplete="off" spellcheck="false">'
        f'<span id="shown" aria-live="polite">{_counted(records)}</span></div>'
        '<div class="wide tall" tabindex="0" role="region" aria-label="all trials">'
        '<table class="sortable" aria-label="all trials; the buttons in the header sort">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
        '<dialog id="detail" aria-labelledby="detail-title"><h2 id="detail-title"></h2><dl></dl>'
        '<button type="button">Close</button></dialog>'
        + data("trials", trials.payload(summary, records))
    )


def _counted(records: Sequence[TrialRecord]) -> str:
    """Return the number of rows of each kind."""
    kinds = Counter(
        record.kind or ("rejected candidate" if record.rejected_early else "trial")
        for record in records
    )
    text = ", ".join(counted(kinds[kind], kind) for kind in sorted(kinds, key=_KINDS.index))
    return f"{counted(len(records), 'row')}: {text}" if len(kinds) > 1 else text


def _trial(summary: Summary, record: TrialRecord) -> str:
    pairs = zip(trials.cells(summary, record), trials.columns(summary.metric), strict=True)
    cells = "".join(f"<td{_class(is_number)}>{escape(v)}</td>" for v, (_, is_number) in pairs)
    return f"<tr{' class=best' if record.number == summary.to_ship() else ''}>{cells}</tr>"


def _class(is_number: bool) -> str:
    return " class=n" if is_number else ""
