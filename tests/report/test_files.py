"""Markdown, SVG files, the table of trials and the time of each part."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from made_up import Study, make_study, rankings, surrounded

from kdsearch.report.drawings import drawings
from kdsearch.report.markdown import markdown
from kdsearch.report.page import render
from kdsearch.report.tables import spent
from kdsearch.report.trials import STATIC_ROWS, payload
from kdsearch.tasks.base import Metric

HOSTILE = "<script>alert(1)</script>|`*_![x](http://x)\n# y & <b>"
SVG = "{http://www.w3.org/2000/svg}"
COMMAND = "kdsearch run --name phones --budget-ms 2"


def text_of(study: Study, command: str = COMMAND) -> str:
    summary, records = study
    return markdown(
        summary,
        records,
        rankings=rankings(records),
        notes=["A note"],
        command=command,
        figures=drawings(summary, records),
    )


def test_markdown_holds_the_words_of_the_page() -> None:
    text = text_of(surrounded(make_study())).replace("\u00a0", " ")
    summary, _ = make_study()
    for part in ("The front", "What distillation gained", "What mattered", "Where the time went"):
        assert f"\n## {part}" in text
    assert f"Ship trial {summary.best}," in text
    for entry in summary.front:
        assert f"| trial {entry.trial} (" in text
        assert f"{100 * entry.val:.2f} \u00b1 " in text
    assert "| small | baseline | not trained |" in text
    assert "![The front](figures/front.svg)" in text
    assert "- A note" in text
    assert f"```sh\n{COMMAND}\n```" in text


def test_rows_of_a_markdown_table_have_one_width() -> None:
    summary, records = surrounded(make_study(name=HOSTILE, family=HOSTILE))
    tables = re.findall(r"(?:^\|.*\|$\n?)+", text_of((summary, records)), flags=re.MULTILINE)
    assert len(tables) == 3
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(widths) == 1


def test_markdown_shows_a_name_as_it_is() -> None:
    text = text_of(make_study(name=HOSTILE, family=HOSTILE), command="a ``` b")
    assert "<script" not in text
    assert "<b>" not in text
    assert not re.search(r"(?<!\\)\[x\]", text)
    assert "\n# y" not in text
    assert "````sh\na ``` b\n````" in text


@pytest.mark.parametrize(
    "kinds",
    [
        {"complete": 0, "rejected": 0, "failed": 0},
        {"complete": 0, "rejected": 3, "failed": 0},
        {"complete": 0, "rejected": 0, "failed": 2},
    ],
    ids=["none", "rejected", "failed"],
)
def test_a_study_without_a_result_has_a_verdict_and_no_figure(kinds: dict[str, int]) -> None:
    summary, records = made = surrounded(make_study(**kinds))
    assert drawings(summary, records) == {}
    text = text_of(made)
    assert "Nothing to ship" in text
    assert "![" not in text


def test_a_single_trial_has_a_figure() -> None:
    summary, records = make_study(complete=1, rejected=0, failed=0, controls=0, epochs=1)
    for svg in drawings(summary, records).values():
        assert ET.fromstring(svg).tag == f"{SVG}svg"


def test_the_drawing_holds_every_trained_student_where_it_belongs() -> None:
    summary, records = surrounded(make_study(pruned=3))
    drawn = drawings(summary, records)
    root = ET.fromstring(drawn["front.svg"])
    circles = [(float(c.get("cx", 0)), c.get("r")) for c in root.iter(f"{SVG}circle")]
    front = sorted(x for x, radius in circles if radius == "4.5")
    # one of each kind stands in the key above the plot
    assert len(front) == len(summary.front) + 1
    assert len([x for x, radius in circles if radius == "3"]) == 20 - len(summary.front) + 1
    latencies = sorted(entry.latency_ms or 0 for entry in summary.front)
    assert latencies[-1] <= 2
    labels = [text.text for text in root.iter(f"{SVG}text")]
    assert {"small", "budget 2\u00a0ms", "teacher", "to ship"} <= set(labels)
    assert "large" not in labels  # its latency was not measured
    lines = list(ET.fromstring(drawn["curves.svg"]).iter(f"{SVG}polyline"))
    assert len(lines) == sum(bool(record.curve) for record in records)


def test_names_are_escaped_in_drawings() -> None:
    summary, records = surrounded(make_study(name=HOSTILE, family=HOSTILE))
    for svg in drawings(
        replace(summary, metric=Metric(key="odd", label=HOSTILE)), records
    ).values():
        assert not list(ET.fromstring(svg).iter(f"{SVG}script"))


def test_the_parts_add_up_to_all_seconds() -> None:
    summary, records = surrounded(make_study(pruned=3))
    records = [
        replace(record, seconds=record.seconds + 1, teacher_seconds=0.25) for record in records
    ]
    parts = spent(summary, records)
    whole = summary.seconds.teacher + summary.seconds.finish + sum(r.seconds for r in records)
    assert sum(parts.values()) == pytest.approx(whole)
    assert parts["teacher: outputs for the students"] == 0.25 * len(records)
    assert parts["measuring rejected students"] == 6 * 0.75
    assert spent(*make_study(complete=0, rejected=0, failed=0)) == {
        "teacher: loading or training": 42.0
    }


def test_every_trial_and_its_configuration_is_in_the_page_once() -> None:
    summary, records = make_study(complete=150, rejected=20, pruned=5)
    html = render(summary, records, rankings=(), notes=[], command=COMMAND)
    assert html.rpartition("<tbody>")[2].count("<tr") == STATIC_ROWS
    found = re.search(r'id="trials-data">(.*?)</script>', html)
    assert found is not None
    data = json.loads(found.group(1))
    assert data == json.loads(json.dumps(payload(summary, records)))
    assert [int(cells[0]) for cells in data["trials"]] == [record.number for record in records]
    assert [cells[-1].keys() for cells in data["trials"]] == [r.params.keys() for r in records]
    assert {len(cells) for cells in data["trials"]} == {len(data["columns"]) + 1}
