"""The figures: errors, budgets, baselines, rungs, pruned trials, slices."""

from __future__ import annotations

import re
from dataclasses import replace
from importlib.resources import files

import pytest
from made_up import make_study, rankings, surrounded

from kdsearch.report import axes, words
from kdsearch.report.curves import curves
from kdsearch.report.figures import MAX_MARKS, close_up, scatter, thinned, views, whole
from kdsearch.report.marks import sort_out
from kdsearch.report.slices import chosen, slice_of
from kdsearch.spec import Budget, TrialRecord
from kdsearch.study.ranking import shares
from kdsearch.study.summary import Summary
from kdsearch.tasks.base import ACCURACY


def figure(summary: Summary, records: list[TrialRecord], axis: str = "latency_ms") -> object:
    return scatter(summary, sort_out(summary, records), axis)


def test_the_standard_error_is_binomial_and_never_zero() -> None:
    # Laplace: (49 + 1) / (98 + 2) = 1/2, so the error is sqrt(1/4 / 98)
    assert words.standard_error(ACCURACY, 0.5, 98) == pytest.approx(0.0505076272)
    # (98 + 1) / 100 = .99: sqrt(.99 * .01 / 98)
    assert words.standard_error(ACCURACY, 1.0, 98) == pytest.approx(0.0100508909)
    assert words.standard_error(ACCURACY, 0.5, None) is None
    assert words.estimate(ACCURACY, 0.5, 98).replace("\u00a0", " ") == "50.00 \u00b1 5.05 %"


def test_error_bars_stand_on_the_number_of_images() -> None:
    summary, records = surrounded(make_study())
    drawn = next(t for t in figure(summary, records).data if t.name == "front")  # type: ignore
    expected = [words.standard_error(ACCURACY, val, 2_000) for val in drawn.y]
    assert list(drawn.error_y.array) == expected
    without = figure(*make_study()).data  # type: ignore[attr-defined]
    assert all(trace.error_y.array is None for trace in without)


def test_horizontal_bars_are_the_intervals_of_latency_on_that_axis_alone() -> None:
    summary, records = make_study()
    drawn = figure(summary, records)
    (front,) = (t for t in drawn.data if t.name == "front")  # type: ignore[attr-defined]
    ends = list(zip(front.x, front.error_x.arrayminus, front.error_x.array, strict=True))
    assert [x - below for x, below, _ in ends] == pytest.approx([0.97 * x for x, _, _ in ends])
    assert [x + above for x, _, above in ends] == pytest.approx([1.03 * x for x, _, _ in ends])
    of_flops = figure(summary, records, "flops")
    shown = views({"latency_ms": drawn, "flops": of_flops})  # type: ignore[dict-item]
    latency, flops = (shown[axis]["traces"]["error_x.visible"] for axis in shown)
    names = [trace.name for trace in drawn.data]  # type: ignore[attr-defined]
    assert latency[names.index("front")]
    assert not latency[names.index("teacher")]
    assert not any(flops)


def test_baseline_networks_stand_at_their_costs() -> None:
    summary, records = surrounded(make_study())
    places = {
        axis: [
            (shape.label.text, shape.x0)
            for shape in figure(summary, records, axis).layout.shapes  # type: ignore
            if shape.type == "line"
        ]
        for axis in ("latency_ms", "flops", "params")
    }
    assert places == {
        "latency_ms": [("small", 0.3), ("budget 2\u00a0ms", 2.0)],  # the large one was not timed
        "flops": [("small", 2_000_000), ("large", 90_000_000)],
        "params": [("small", 600_000), ("large", 11_000_000)],
    }


def test_every_limited_cost_has_its_line() -> None:
    summary, records = make_study()
    summary = replace(summary, budget=Budget(latency_ms=2.0, flops=3e7, params=1e6))
    for axis, limit in (("latency_ms", 2.0), ("flops", 3e7), ("params", 1e6)):
        line, side = figure(summary, records, axis).layout.shapes  # type: ignore[attr-defined]
        assert (line.x0, line.x1) == (limit, limit)
        assert (side.type, side.x0) == ("rect", limit)
        assert side.x1 > limit


def test_the_chance_level_is_a_line() -> None:
    summary, records = make_study()
    summary = replace(summary, chance=0.1, budget=Budget())
    (line,) = figure(summary, records).layout.shapes  # type: ignore[attr-defined]
    assert (line.y0, line.y1, line.xref) == (0.1, 0.1, "paper")


@pytest.mark.parametrize(("limit", "shown"), [(400.0, 400.0), (401.0, None)])
def test_a_budget_far_beyond_the_points_does_not_crush_them(
    limit: float, shown: float | None
) -> None:
    assert axes.shown_limit(Budget(latency_ms=limit), "latency_ms", [3.0, 100.0, None]) == shown


def test_low_outliers_are_outside_the_first_view_only() -> None:
    summary, records = make_study(controls=0)
    outlier = next(r for r in records if r.number not in {e.trial for e in summary.front})
    records = [replace(r, val=0.1) if r is outlier else r for r in records]
    marks = sort_out(summary, records)
    assert min(close_up(marks)) > 0.8
    assert whole(marks)[0] < 0.1
    assert set(close_up(marks)) >= {mark.val for mark in (*marks.front, marks.teacher)}


def test_marks_differ_in_shape_not_in_colour_alone() -> None:
    traces = figure(*make_study(pruned=3)).data  # type: ignore[attr-defined]
    shapes = [(t.marker.symbol, t.marker.size) for t in traces if t.name]
    assert len(shapes) == len(set(shapes)) == 8
    assert len({symbol for symbol, _ in shapes}) == 7  # dominated and front: by the line too


def test_many_marks_are_thinned_evenly() -> None:
    summary, records = make_study(complete=10, rejected=2 * MAX_MARKS + 1, failed=0)
    kept = [mark.trial for mark in thinned(sort_out(summary, records).rejected)]
    assert kept == list(range(10, 10 + 2 * MAX_MARKS + 1, 3))
    assert len(kept) <= MAX_MARKS


def test_rungs_and_pruned_trials_are_marked() -> None:
    summary, records = make_study(pruned=3, epochs=16)
    drawn = curves(replace(summary, stopping="safe"), records)
    assert [shape.x0 for shape in drawn.layout.shapes[:-1]] == [1, 2, 4, 8, 12]
    assert drawn.layout.shapes[-1].y0 == summary.teacher.val
    ends = next(trace for trace in drawn.data if trace.name == "pruned here")
    pruned = [record for record in records if record.state == "pruned"]
    assert list(ends.x) == [4, 4, 4]
    assert list(ends.y) == [record.curve[-1] for record in pruned]
    assert all("cannot reach the front" in text for text in ends.hovertext)
    plain = curves(summary, records)
    assert [shape.y0 for shape in plain.layout.shapes] == [summary.teacher.val]


def test_slices_show_the_most_important_parameters_that_differ() -> None:
    _, records = make_study()
    named = {"train.weight_decay": 0.9, "method.alpha": 0.1, "student.resolution": 0.3}
    assert chosen(named, records) == ["student.resolution", "method.alpha"]  # the decay is fixed
    assert chosen({}, records) == ["student.family", "method.name"]
    assert len(chosen(shares(rankings(records)), records)) == 4
    assert chosen({}, []) == []


def test_a_slice_holds_completed_trials_of_the_search() -> None:
    summary, records = make_study()
    done = [r for r in records if r.state == "complete" and r.control_of is None]
    drawn = slice_of(summary, records, "method.alpha").data
    assert list(drawn[0].x) == [record.params["method.alpha"] for record in done]
    assert list(drawn[0].y) == [record.val for record in done]
    assert list(drawn[1].customdata) == [summary.best]
    options = [record.params["method.name"] for record in done]
    strips = slice_of(summary, records, "method.name").data[0]
    assert (strips.type, strips.mode) == ("scatter", "markers")
    assert list(strips.x) == options
    many = slice_of(summary, [replace(r) for r in records for _ in range(2)], "method.name").data[0]
    assert many.type == "box"


def colours(theme: int) -> dict[str, str]:
    """Return the page's colours, of the light theme (0) or the dark one (1)."""
    css = files("kdsearch.report").joinpath("page.css").read_text(encoding="utf-8")
    found = re.findall(r"--(\w+): light-dark\((#\w{6}), (#\w{6})\)", css)
    assert len(found) == css.count("light-dark(")
    return {name: pair[theme] for name, *pair in found}


def luminance(colour: str) -> float:
    """Return the relative luminance of WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_that_of_wcag() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=0.001)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_and_marks_stand_out_from_the_paper(theme: int) -> None:
    known = colours(theme)
    for text in ("ink", "muted", "accent"):
        for paper in ("paper", "raised"):
            assert contrast(known[text], known[paper]) >= 4.5, (text, paper)
    for text in ("ink", "accent"):
        assert contrast(known[text], known["best"]) >= 4.5, text
    assert contrast(known["edge"], known["paper"]) >= 3
    marks = (axes.BLUE, axes.VERMILLION, axes.GREEN, axes.PURPLE, axes.ORANGE, axes.GREY)
    assert {colour: contrast(colour, known["paper"]) >= 3 for colour in marks} == dict.fromkeys(
        marks, True
    )
