"""The figures of a detector: precision over recall by class, and recall by the size of objects."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up import make_study, rankings, surrounded

from kdsearch.deploy.model_card import _pictures
from kdsearch.report import box_figures, paper
from kdsearch.report.drawings import drawings
from kdsearch.report.markdown import markdown
from kdsearch.report.page import render
from kdsearch.tasks._average_precision import AveragePrecision
from kdsearch.tasks._box_curves import curves_of
from kdsearch.tasks.base import BoxCurves, Details

FALLING = tuple(1 - 0.05 * i for i in range(21))
CURVES = BoxCurves(
    precision=(FALLING, None, (0.25,) * 21),
    sides=(0.02, 0.1, 0.4),
    objects=(40, 60),
    found=(10, 54),
    score=0.25,
)
NAMES = ("<b>cell", "none", "disc")


def lines(svg: str) -> list[list[tuple[float, float]]]:
    """Return the points of each polyline."""
    return [
        [tuple(map(float, point.split(","))) for point in found.split()]
        for found in re.findall(r'polyline points="([^"]*)"', svg)
    ]


def test_each_class_with_objects_has_its_curve_and_its_name_is_escaped() -> None:
    svg = box_figures.drawn({"validation": Details(curves=CURVES)}, NAMES)["precision_recall.svg"]
    ET.fromstring(svg)
    flat, falling = lines(svg)  # the worse class first
    assert {y for _, y in flat} == {paper.BOTTOM - (paper.BOTTOM - paper.TOP) / 4}
    assert falling[0] == (paper.LEFT, paper.TOP)
    assert falling[-1] == (paper.RIGHT, paper.BOTTOM)
    assert falling[10] == ((paper.LEFT + paper.RIGHT) / 2, (paper.TOP + paper.BOTTOM) / 2)
    assert "&lt;b&gt;cell" in svg
    assert ">none<" not in svg
    assert "on validation" in svg


def test_of_many_classes_the_worst_are_shown() -> None:
    columns = tuple((k / 40,) * 21 for k in range(40))
    names = [f"class{k:02d}" for k in range(40)]
    many = replace(CURVES, precision=columns)
    svg = box_figures.drawn({"test": Details(curves=many)}, names)["precision_recall.svg"]
    shown = re.findall(r">(class\d\d)<", svg)
    assert shown == names[: box_figures.MOST]
    assert "the 10 worst of 40" in svg


def test_groups_of_sizes_stand_at_their_recall_with_their_counts() -> None:
    svg = box_figures.drawn({"test": Details(curves=CURVES)}, NAMES)["object_sizes.svg"]
    ET.fromstring(svg)
    thick = re.findall(r'y1="([\d.]+)"[^/]*stroke-width="4"', svg)
    height = paper.BOTTOM - paper.TOP
    assert [float(y) for y in thick] == pytest.approx(
        [paper.BOTTOM - 0.25 * height, paper.BOTTOM - 0.9 * height], abs=0.06
    )
    assert "40 to 60 objects a line" in svg


def test_report_and_card_show_the_figures_of_the_test_split() -> None:
    summary, records = surrounded(make_study())
    details = {
        f"shipped {split}": Details(curves=replace(CURVES, found=(n, 54)))
        for split, n in (("test", 20), ("validation", 30))
    }
    summary = replace(summary, classes=NAMES, details=details)
    drawn = drawings(summary, records)
    assert "on test" in drawn["object_sizes.svg"]
    shown = {"rankings": rankings(records), "notes": [], "command": "kdsearch run"}
    assert render(summary, records, **shown).count("data:image/svg+xml;base64,") == 2
    text = markdown(summary, records, **shown, figures=drawn)
    card = _pictures({"figures": box_figures.TITLES})
    for name, title in box_figures.TITLES.items():
        assert f"![{title}](figures/{name})" in text
        assert f"![{title}]({name})" in card


def test_other_tasks_have_no_such_figures(tmp_path: Path) -> None:
    assert box_figures.drawn({"test": Details()}, NAMES) == {}
    assert _pictures({}) == ""


def test_the_curves_are_those_of_the_boxes() -> None:
    """Of 50 objects of one class the large half is found, with boxes of half the scores drawn."""
    low = torch.rand(50, 1, 2, generator=torch.Generator().manual_seed(0)) * 0.3
    sides = torch.linspace(0.05, 0.5, 50)[:, None, None]
    truth = torch.cat([low, low + sides, torch.zeros(50, 1, 1)], dim=2)
    answer = torch.cat([truth[..., :4], torch.full((50, 1, 1), 0.9)], dim=2)
    answer[:25, :, 4] = 0.2  # too low to be drawn
    answer[:10, :, :4] += 0.6  # elsewhere
    meter = AveragePrecision(1)
    meter.keep_images(50)
    meter.add(answer, truth)
    found = meter.details().curves
    assert found is not None
    assert found.objects == (25, 25)
    assert found.found == (0, 25)
    assert found.sides[1] == pytest.approx(float(sides[24:26].mean()), abs=1e-3)
    (column,) = found.precision
    assert column is not None
    assert column == (1.0,) * 11 + (0.8,) * 6 + (0.0,) * 4  # 25 right, 10 wrong, 15 right


def test_objects_of_one_size_are_one_group() -> None:
    truth = [torch.tensor([[0.1, 0.1, 0.3, 0.3, 0.0]])] * 60
    precision = np.full((10, 101, 1, 4, 1), 0.5)
    found = curves_of(precision, truth, [torch.zeros(0, 6)] * 60)
    assert (found.objects, found.found) == ((60,), (0,))
    assert found.sides[0] < found.sides[1]
