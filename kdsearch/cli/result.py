"""The result of a study in the terminal: one box with the answers, the files, what to do next.

Statistics belong to the report.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from kdsearch.errors import printable
from kdsearch.report import words
from kdsearch.report.advice import located
from kdsearch.report.tiles import BAD, GOOD, tiles
from kdsearch.report.verdict import verdict
from kdsearch.study.formatting import SPACE
from kdsearch.study.summary import Summary

_STYLES = {GOOD: "green", BAD: "yellow"}


def result(summary: Summary, path: Path) -> Iterator[str | RenderableType]:
    """Yield the box, the paths of the files, and the next steps of a study."""
    yield _box(summary)
    yield f"Model: {path}/best/student.onnx"
    yield f"Report: {path}/report.html"
    yield f"Retrain: kdsearch distill --config {path}/best/config.yaml"
    if summary.advice:
        yield "Next:"
        yield from (f"- {_plain(line)}" for line in located(summary.advice, path))


def _box(summary: Summary) -> Panel:
    """Return the answers on what ships, each with its small print."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for tile in tiles(summary):
        value = Text(_plain(tile.value), style=f"bold {_STYLES.get(tile.tone, '')}".strip())
        if tile.detail:
            value.append(f"; {_plain(tile.detail)}", style="not bold default")
        grid.add_row(_plain(tile.title), value)
    lead = Text(_plain(verdict(summary, [])))
    where = Text(_plain(f"Latency: {words.target(summary.target)}"), style="dim")
    title = Text(printable(f"Result of {summary.study}"))
    return Panel(Group(lead, grid, where), title=title, title_align="left", width=80)


def _plain(text: str) -> str:
    return printable(text.replace(SPACE, " "))
