"""Figures of the search: what grows over trials, all choices at once, and the clock."""

from __future__ import annotations

from dataclasses import replace

import pytest
from made_up import make_study

from kdsearch.report.search import (
    FEWEST_LINES,
    MOST_AXES,
    MOST_LINES,
    in_rows,
    parallel,
    progress,
    timeline,
)
from kdsearch.study.timeline import PAUSE, Span, arranged


def span(trial: int, begin: float, end: float) -> Span:
    return Span(trial=trial, begin=begin, end=end)


def test_the_best_so_far_is_the_largest_until_then() -> None:
    summary, records = make_study(complete=30)
    figure = progress(summary, records)
    assert figure is not None
    trials, best, volume = figure.data
    assert list(best.y) == [max(trials.y[: i + 1]) for i in range(30)]
    assert volume.y[-1] == 1
    assert list(volume.y) == sorted(volume.y)
    assert all(trial in best.x for trial in volume.x)


def test_an_untrained_network_is_outside_the_range() -> None:
    summary, records = make_study(complete=30)
    records[7] = replace(records[7], val=0.1)
    figure = progress(summary, records)
    assert figure is not None
    assert figure.layout.yaxis.range[0] > 0.5


@pytest.mark.parametrize("complete", [0, 1])
def test_one_trial_has_no_progress(complete: int) -> None:
    assert progress(*make_study(complete=complete, controls=0)) is None
    assert timeline(make_study(complete=complete)[1], ()) is None


def test_parallel_lines_pass_through_the_values_of_their_trial() -> None:
    summary, records = make_study(complete=25)
    assert parallel(*make_study(complete=FEWEST_LINES - 1), {}) is None
    figure = parallel(summary, records, {"train.lr": 1.0})
    assert figure is not None
    names = list(figure.layout.xaxis.ticktext)
    assert names[0] == "train.lr"  # the most important comes first
    assert names[-2:] == ["latency", "accuracy"]
    assert "student.width" in names  # one axis for all families
    assert "train.weight_decay" not in names  # it is fixed
    assert len(names) <= MOST_AXES
    lines = {}
    for trace in figure.data:
        for at in range(0, len(trace.x), len(names) + 1):
            lines[trace.customdata[at]] = trace.y[at : at + len(names)]
    done = [r for r in records if r.state == "complete" and not r.kind]
    assert lines.keys() == {record.number for record in done}
    for column, value in ((names.index("latency"), "latency_ms"), (0, "")):
        key = (lambda r: r.cost.latency_ms) if value else (lambda r: r.params["train.lr"])
        by_value = sorted(done, key=key)
        heights = [lines[record.number][column] for record in by_value]
        assert heights == sorted(heights)
        assert (heights[0], heights[-1]) == (0, 1)
    best = max(done, key=lambda record: record.val or 0.0)
    assert best.number in figure.data[-1].customdata


def test_on_a_phone_each_axis_is_a_row_with_its_lowest_value_at_the_left() -> None:
    figure = parallel(*make_study(complete=25), {"train.lr": 1.0})
    assert figure is not None
    rows: dict[int, list[str]] = {}
    for each in sorted(in_rows(figure)["annotations"], key=lambda each: each["x"]):
        rows.setdefault(each["y"], []).append(each["text"])
    names = figure.layout.xaxis.ticktext
    ends = {(each.x, each.y > 1): each.text for each in figure.layout.annotations}
    assert [rows[i] for i in range(len(names))] == [
        [ends[i, False], f"<b>{name}</b>", ends[i, True]] for i, name in enumerate(names)
    ]


def test_a_large_study_has_at_most_so_many_lines() -> None:
    figure = parallel(*make_study(complete=MOST_LINES + 50), {})
    assert figure is not None
    trials = {number for trace in figure.data for number in trace.customdata} - {None}
    assert len(trials) == MOST_LINES


def test_spans_that_overlap_have_lanes_of_their_own() -> None:
    found = arranged([span(2, 115, 130), span(0, 100, 110), span(1, 105, 120), span(3, 121, 125)])
    assert [(each.trial, each.lane) for each in found] == [(0, 0), (1, 1), (2, 0), (3, 1)]
    assert (found[0].begin, found[-1].end) == (0, 25)


def test_a_pause_between_runs_is_cut_out() -> None:
    found = arranged([span(0, 0, 10), span(1, 12, 20), span(2, 20 + 10 * PAUSE, 30 + 10 * PAUSE)])
    assert [each.begin for each in found] == [0, 12, 20]
    assert [each.after_pause for each in found] == [False, False, True]
    assert found[2].end == 30


def test_the_timeline_has_a_bar_for_each_span() -> None:
    _, records = make_study(complete=3, rejected=1, failed=1, controls=1)
    found = arranged([span(r.number, 10 * i, 10 * i + 10) for i, r in enumerate(records)])
    figure = timeline(records, [*found, span(999, 0, 1)])
    assert figure is not None
    bars = {trace.name: list(trace.customdata) for trace in figure.data}
    assert bars == {"completed": [0, 1, 2], "not completed": [3, 4], "controls, refits": [5]}
    assert figure.data[0].base == (0, 10, 20)
    assert figure.data[0].x == (10, 10, 10)
