"""Reports and tables use the label and the numbers of the metric of the study."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from made_up import Study, make_study, rankings, surrounded
from plotly.offline import get_plotlyjs
from rich.console import Console
from table_study import REQUEST, opened, run_to

from kdsearch.cli.tables import FrontTable, candidates_table, comparison_table, show
from kdsearch.report import words
from kdsearch.report.comparison import compare
from kdsearch.report.dashboard import write_dashboard
from kdsearch.report.drawings import drawings
from kdsearch.report.findings import about_controls, about_refits, about_teacher
from kdsearch.report.markdown import markdown
from kdsearch.report.page import render
from kdsearch.report.verdict import verdict
from kdsearch.tasks.base import ACCURACY, Metric

IOU = Metric(key="miou", label="mean IoU")
FIT = Metric(key="r2", label="explained variance", is_percent=False, image_variance=0.04)


def of(metric: Metric) -> Study:
    summary, records = surrounded(make_study(pruned=3))
    return replace(summary, metric=metric), records


def printed(*parts: object) -> str:
    out = StringIO()
    show(*parts, console=Console(file=out, width=200))
    return out.getvalue()


def texts(study: Study) -> dict[str, str]:
    """Return every text that is made of a summary."""
    summary, records = study
    shown = {"rankings": rankings(records), "notes": [], "command": "kdsearch run"}
    page = render(summary, records, **shown)
    return {
        "page": page.replace(get_plotlyjs(), ""),
        "markdown": markdown(summary, records, **shown),
        "verdict": verdict(summary, records),
        "tables": printed(FrontTable(summary), *candidates_table(summary)),
        **drawings(summary, records),
    }


@pytest.mark.parametrize("metric", [IOU, FIT], ids=lambda metric: metric.key)
def test_no_text_names_another_metric(metric: Metric) -> None:
    for name, text in texts(of(metric)).items():
        assert "ccura" not in text, name
        if name != "tables":
            assert metric.label.lower() in text.lower(), name


def test_a_metric_that_is_no_percentage_has_plain_numbers() -> None:
    summary, _ = of(FIT)
    for name, text in texts(of(FIT)).items():
        plain = text.replace("95\u00a0%", "").replace("95 %", "")
        if name in ("verdict", "tables", "front.svg", "curves.svg"):
            assert "%" not in plain.replace('width="100%" height="100%"', ""), name
    best = summary.best_entry()
    assert best is not None
    assert f"{best.test:.4f}" in verdict(*of(FIT))
    assert " points" not in verdict(*of(FIT))


def test_the_page_of_a_plain_metric_writes_no_percent_template() -> None:
    page = texts(of(FIT))["page"]
    assert "%{y:.4f}" in page
    assert "%{y:.2%}" not in page


@pytest.mark.parametrize(
    ("metric", "written"),
    [
        (ACCURACY, ["97.31 %", "+1.20", "gain, points"]),
        (FIT, ["0.9731", "+0.0120", "gain"]),
    ],
    ids=lambda value: getattr(value, "key", ""),
)
def test_numbers_follow_the_metric(metric: Metric, written: list[str]) -> None:
    found = [
        words.score(metric, 0.9731).replace("\u00a0", " "),
        words.points(metric, 0.012),
        words.heading("gain", metric.points),
    ]
    assert found == written


def test_a_difference_that_rounds_to_nothing_has_no_sign() -> None:
    assert words.points(ACCURACY, -0.00001) == "0.00"
    assert words.points(FIT, 0.00001) == "0.0000"


@pytest.mark.parametrize(
    ("difference", "error", "expected"),
    [
        (0.012, 0.005, "Gained over it: +1.20 [+0.20, +2.20] points of validation accuracy"),
        (-0.012, 0.005, "Lost over it: -1.20 [-2.20, -0.20] points of validation accuracy"),
        (
            0.012,
            0.007,
            "No measurable gain over it: +1.20 [-0.20, +2.60] points of",
        ),
        (0.925, 0.5, "No measurable gain over it: +92.50 [-7.50, +192.50] points of"),
    ],
)
def test_a_gain_is_one_where_its_interval_excludes_0(
    difference: float, error: float, expected: str
) -> None:
    interval = difference, difference - 2 * error, difference + 2 * error
    text = words.gained(ACCURACY, interval, "validation", "over it").replace("\u2212", "-")
    assert text.startswith(expected)


def test_a_table_calls_what_noise_explains_noise() -> None:
    assert words.gain(ACCURACY, 0.012, 0.005) == "+1.20"
    assert words.gain(ACCURACY, 0.012, 0.007) == "+1.20, noise"
    assert words.gain(ACCURACY, -0.012, 0.005) == "\u22121.20, lost"


def test_a_study_states_its_metric(fast_path: object) -> None:
    """In front.json by its key; in findings, comparison and dashboard by its label."""
    teacher = {"name": "auto", "val": 0.99, "test": 0.5, "flops": 1, "params": 1}
    with opened(fast_path / "metric", REQUEST) as study:  # type: ignore[operator]
        assert study.metric == ACCURACY
        study.update_facts(
            teacher={**teacher, "latency_ms": None},
            images={"train": 100, "val": 100, "test": 100},
            metric={"key": "miou", "label": "mean IoU", "is_percent": True, "image_variance": None},
        )
        run_to(study, 6)
        assert study.metric == IOU
        best = study.front()[-1]
        write_dashboard(study)
        findings = [
            *about_controls(study, best, [], 100, shipped=best.number),
            *about_refits(study, best.number),
            *about_teacher(study, 0.99),
        ]
        compared = printed(*comparison_table(compare(study, study)))
        notes = [
            str(value)
            for key, value in study.store.disk.get_study_system_attrs(study.store.study_id).items()
            if "note_str" in key
        ]
    assert "mean IoU" in " ".join(findings)
    for text in (*findings, compared, *notes):
        assert "ccura" not in text
