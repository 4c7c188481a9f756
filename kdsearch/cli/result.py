"""The result of a study in the terminal: one box with the answers, the files, what to do next.

Statistics belong to the report.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from textwrap import TextWrapper

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

_WIDTH = 80
_INSIDE = _WIDTH - 4  # without the frame and its padding
_GAP = 2  # between the columns
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
    grid = Table.grid(padding=(0, _GAP))
    grid.add_column(no_wrap=True)
    grid.add_column()
    found = tiles(summary)
    room = _INSIDE - _GAP - max((len(_plain(tile.title)) for tile in found), default=0)
    for tile in found:
        detail = f"; {tile.detail}" if tile.detail else ""
        value = Text(_wrapped(f"{tile.value}{detail}", room))
        value.stylize(f"bold {_STYLES.get(tile.tone, '')}".strip(), 0, len(_plain(tile.value)))
        grid.add_row(_plain(tile.title), value)
    lead = Text(_wrapped(verdict(summary, []), _INSIDE))
    where = Text(_plain(f"Latency: {words.target(summary.target)}"), style="dim")
    title = Text(printable(f"Result of {summary.study}"))
    return Panel(Group(lead, grid, where), title=title, title_align="left", width=_WIDTH)


def _wrapped(text: str, width: int) -> str:
    """Return a text in lines; a number and its unit stay on one."""
    lines = TextWrapper(width, break_long_words=False, break_on_hyphens=False).wrap(text)
    return "\n".join(map(_plain, lines))


def _plain(text: str) -> str:
    return printable(text.replace(SPACE, " "))
