"""The report in GitHub-flavoured Markdown, with the words and tables of the page."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence

from kdsearch.report import box_figures, classes, importance, tables, words
from kdsearch.report.layers import layer_table
from kdsearch.report.tables import Table
from kdsearch.report.tiles import Tile, tiles
from kdsearch.report.verdict import verdict
from kdsearch.spec import TrialRecord
from kdsearch.study.formatting import counted, duration
from kdsearch.study.ranking import Ranking
from kdsearch.study.summary import Summary


def markdown(
    summary: Summary,
    records: Sequence[TrialRecord],
    *,
    rankings: Sequence[Ranking],
    notes: Sequence[str],
    command: str,
    figures: Iterable[str] = (),
    picture: str = "",
) -> str:
    """Return the report. figures: names of the files in `figures/` to show. picture: its file."""
    shown = {"front.svg": "The front", "curves.svg": "Learning curves"}
    images = {
        name: f"![{title}](figures/{name})" for name, title in shown.items() if name in figures
    }
    best = summary.shipped or summary.best_entry()
    gains = tables.candidates(summary) or tables.gains(summary, records)
    parts = [
        f"# {_text(summary.study)}: distillation study",
        _text(verdict(summary, records)),
        _text(words.busy(summary)),
        _listed({tile.title: _told(tile) for tile in tiles(summary)}),
        *(["## Next", _steps(summary.advice)] if summary.advice else []),
        "" if best is None else _table(tables.against_teacher(summary, best)),
        _text(words.conventions(summary)),
        _text(words.tally(summary, records)),
        "## The front",
        images.get("front.svg", ""),
        _table(tables.front(summary)),
        "## What distillation gained at equal cost",
        "No trial on the front has a control." if gains is None else _table(gains),
        "\n".join(f"- {_text(note)}" for note in notes),
        *_classes(summary, picture, figures),
        *(["## The student", _table(found)] if (found := layer_table(summary)) else []),
        "## What mattered",
        *(_ranked(summary, each) for each in rankings),
        importance.explained(rankings) if rankings else importance.unknown(summary),
        "## Learning curves" if "curves.svg" in images else "",
        images.get("curves.svg", ""),
        "## Where the time went",
        _listed({n: duration(v) for n, v in tables.spent(summary, records).items()})
        or "No time has been recorded yet.",
        "## How to reproduce",
        _fenced(command),
        "All trials: `trials.csv`. All figures: `report.html`.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _classes(summary: Summary, picture: str, figures: Iterable[str]) -> list[str]:
    found = [_table(t) for t in (classes.by_class(summary), classes.confusion(summary)) if t]
    shown = [
        f"![{title}](figures/{name})"
        for name, title in box_figures.TITLES.items()
        if name in figures
    ]
    shown += [f"![validation images and answers]({picture})"] if picture else []
    return ["## By class", *found, *shown] if found or shown else []


def _ranked(summary: Summary, ranking: Ranking) -> str:
    values = {
        item.name: f"{item.share:.2f} ({item.low:.2f} to {item.high:.2f})"
        for item in ranking.values[: importance.MOST]
    }
    rest = len(ranking.values) - len(values)
    more = f"\n\n{counted(rest, 'more parameter')} in `report.html`." if rest else ""
    return f"{_text(importance.title(summary, ranking))}:\n\n{_listed(values)}{more}"


def _told(tile: Tile) -> str:
    return f"{tile.value} ({tile.detail})" if tile.detail else tile.value


def _steps(texts: Iterable[str]) -> str:
    """Return the next steps, with their commands as code."""
    lines = []
    for text in texts:
        parts = enumerate(text.split("`"))
        lines.append("- " + "".join(f"`{part}`" if i % 2 else _text(part) for i, part in parts))
    return "\n".join(lines)


def _listed(values: Mapping[str, str]) -> str:
    return "\n".join(f"- {_text(name)}: {_text(value)}" for name, value in values.items())


def _table(content: Table) -> str:
    head, *rows = [f"| {' | '.join(map(_text, line))} |" for line in (content.head, *content.rows)]
    rule = f"| {' | '.join(['---'] * len(content.head))} |"
    caption = [_text(content.caption), ""] if content.caption else []
    return "\n".join([*caption, head, rule, *rows])


def _text(text: str) -> str:
    """Return text that GitHub shows literally, on one line."""
    plain = html.escape(text.replace("\n", " ").replace("\r", " "), quote=False)
    return re.sub(r"([\\`*_\[\]|~#!@])", r"\\\1", plain)


def _fenced(command: str) -> str:
    """Return the command in a fence longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", command)), default=0))
    return f"{fence}sh\n{command}\n{fence}"
