"""The layers of the shipped student in the report."""

from __future__ import annotations

import re
from dataclasses import replace

from made_up import make_study

from kdsearch.report.layers import drawing, layer_table
from kdsearch.report.markdown import markdown
from kdsearch.report.page import render
from kdsearch.study.summary import Layer, ShippedFile

LAYERS = (
    Layer(name="stem", shape=(8, 32, 32), params=224, flops=3_000_000),
    Layer(name="stages.0<b>", shape=(32, 8, 8), params=9_000, flops=6_000_000),
    Layer(name="head", shape=(10,), params=330, flops=1_000_000),
    Layer(name="other", shape=(), params=0, flops=0),
)
FILE = ShippedFile(bytes=1, val=0.9, contention=1.0, one_round=False, layers=LAYERS)


def test_the_table_states_each_layer_and_the_sums() -> None:
    table = layer_table(replace(make_study()[0], file=FILE))
    assert table is not None
    rows = [tuple(cell.replace("\u00a0", " ") for cell in row) for row in table.rows]
    assert rows[1] == ("stages.0<b>", "32 \u00d7 8 \u00d7 8", "9,000", "6 M", "60.0 %")
    assert rows[-1] == ("all", "", "9,554", "10 M", "")
    assert len(rows) == len(LAYERS) + 1
    assert layer_table(replace(make_study()[0], file=None)) is None


def test_the_drawing_has_a_block_for_each_map() -> None:
    svg = drawing(LAYERS)
    blocks = re.findall(r'<rect [^>]*width="([\d.]+)" height="([\d.]+)"', svg)
    widths, heights = zip(*[(float(w), float(h)) for w, h in blocks], strict=True)
    assert len(blocks) == 3
    assert heights[0] > heights[1] > heights[2]
    assert heights[0] / heights[1] == 2  # sides of 32 and 8: the root of 4
    assert max(widths) == widths[1]
    assert "<b>" not in svg
    assert drawing(()) == ""


def test_page_and_markdown_show_the_layers_of_what_ships() -> None:
    summary, records = make_study()
    for file, there in ((FILE, True), (None, False)):
        shown = replace(summary, file=file)
        html = render(shown, records, rankings=(), notes=[], command="kdsearch run")
        text = markdown(shown, records, rankings=(), notes=[], command="kdsearch run")
        assert ('id="the-student"' in html) == there
        assert ("## The student" in text) == there
