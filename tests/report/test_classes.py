"""What the report and the card state on classes: scores with noise, confusion, a picture."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from made_up import make_study, rankings, surrounded

from kdsearch.deploy.model_card import _by_class, _pictures
from kdsearch.report import classes
from kdsearch.report.markdown import markdown
from kdsearch.report.page import render
from kdsearch.study.summary import Summary
from kdsearch.tasks.base import ClassScores, Details

NAMES = ("road", "<b>pole", "sky")
PNG = b"\x89PNG not quite"


def scores(*values: float | None) -> ClassScores:
    errors = tuple(None if value is None else value / 10 for value in values)
    return ClassScores(label="IoU", values=values, errors=errors, shares=(0.75, 0.25, 0.0))


def summary_of(**details: Details) -> Summary:
    summary, _ = surrounded(make_study())
    return replace(
        summary,
        classes=NAMES,
        details={name.replace("_", " "): value for name, value in details.items()},
    )


STUDENT = Details(
    scores=scores(0.9, 0.412, None), confusion=((720, 30, 0), (100, 150, 0), (0, 0, 0))
)
TEACHER = Details(scores=scores(0.88, 0.5, None))


def texts(summary: Summary, picture: bytes = PNG) -> tuple[str, str]:
    records = surrounded(make_study())[1]
    shown = {"rankings": rankings(records), "notes": [], "command": "kdsearch run"}
    return (
        render(summary, records, **shown, picture=picture),
        markdown(summary, records, **shown, picture="best/a.png" if picture else ""),
    )


def test_each_class_has_its_score_with_noise_its_gap_and_what_it_is_taken_for() -> None:
    table = classes.by_class(summary_of(shipped_test=STUDENT, teacher_test=TEACHER))
    assert table is not None
    assert "on test" in table.caption
    assert table.rows == (
        ("road", "75.00", "90.0 \u00b1 9.0 %", "88.0 \u00b1 8.8 %", "+2.0", "<b>pole (4.0 %)"),
        (
            "<b>pole",
            "25.00",
            "41.2 \u00b1 4.1 %",
            "50.0 \u00b1 5.0 %",
            "\u22128.8",
            "road (40.0 %)",
        ),
        ("sky", "0.00", "no labels", "no labels", "not measured", ""),
    )


def test_the_confusion_is_in_percent_of_the_labels_of_a_class() -> None:
    table = classes.confusion(summary_of(shipped_test=STUDENT))
    assert table is not None
    assert table.rows[0] == ("road", "96.0", "4.0", "0.0")
    assert table.rows[1] == ("<b>pole", "40.0", "60.0", "0.0")
    assert table.rows[2] == ("sky", "", "", "")


def test_classification_has_the_recall_of_each_class_with_its_noise() -> None:
    """Laplace's rule for 9 of 10: 10/12, so the error is sqrt(10/12 * 2/12 / 10) = 0.1179."""
    student = Details(
        images=(10, 30, 0), right=(9, 30, 0), answered=(10, 30, 0),
        confusion=((9, 1, 0), (0, 30, 0), (0, 0, 0)),
    )  # fmt: skip
    summary = summary_of(shipped_test=student, teacher_test=replace(student, right=(10, 30, 0)))
    table = classes.by_class(summary)
    assert table is not None
    assert table.rows[0] == (
        *("road", "25.00", "90.0 \u00b1 11.8 %", "100.0 \u00b1 8.7 %"),
        *("\u221210.0", "<b>pole (10.0 %)"),
    )
    assert table.rows[2][2] == "no labels"
    shares = classes.confusion(summary)
    assert shares is not None
    assert shares.rows[0] == ("road", "90.0", "10.0", "0.0")


def test_of_many_classes_the_worst_are_shown() -> None:
    names = tuple(f"class {i}" for i in range(100))
    student = Details(images=(100,) * 100, right=tuple(range(100)), answered=(100,) * 100)
    table = classes.by_class(replace(summary_of(shipped_test=student), classes=names))
    assert table is not None
    assert [row[0] for row in table.rows] == list(names[: classes.MOST])
    assert f"the {classes.MOST} worst classes" in table.caption


def test_validation_is_shown_until_there_is_a_test_and_the_teacher_may_lack() -> None:
    table = classes.by_class(summary_of(shipped_validation=STUDENT))
    assert table is not None
    assert "on validation" in table.caption
    assert table.rows[0][3:5] == ("not measured", "not measured")


@pytest.mark.parametrize("details", [{}, {"shipped_test": Details(images=(1, 2, 3))}])
def test_evaluations_without_scores_add_nothing_to_the_report(details) -> None:
    for text in texts(summary_of(**details), picture=b""):
        assert "By class" not in text
        assert 'class="strip"' not in text


def test_page_and_markdown_show_classes_escaped_and_the_picture() -> None:
    page, text = texts(summary_of(shipped_test=STUDENT, teacher_test=TEACHER))
    assert "41.2 \u00b1 4.1 %" in page
    assert "&lt;b&gt;pole" in page
    assert "<b>pole" not in page
    assert f"data:image/png;base64,{base64.b64encode(PNG).decode()}" in page
    assert "41.2 \u00b1 4.1 %" in text
    assert "![validation images and answers](best/a.png)" in text


def test_the_card_states_scores_the_worst_first_and_shows_the_picture() -> None:
    found = {
        "label": "IoU",
        "values": [0.9, 0.412, None],
        "errors": [0.09, 0.0412, None],
        "shares": [0.75, 0.25, 0.0],
    }
    metrics = {
        "details": {"test": {"images": [], "scores": found}},
        "metadata": {"classes": '["road", "pole", "sky"]'},
        "picture": "validation.png",
    }
    lines = "\n".join(_by_class(metrics)).splitlines()
    rows = [line for line in lines if line.startswith("| ")][1:]
    assert rows == ["| pole | 41.2 \u00b1 4.1 | 25.00 |", "| road | 90.0 \u00b1 9.0 | 75.00 |"]
    assert "(validation.png)" in _pictures(metrics)
    assert _pictures({}) == ""
