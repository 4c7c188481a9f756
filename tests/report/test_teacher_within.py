"""A teacher within the budget: no student is needed, and every report says so first."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO

import pytest
from made_up import make_study, rankings, surrounded
from rich.console import Console

from kdsearch.cli.tables import FrontTable, show
from kdsearch.report import tables
from kdsearch.report.markdown import markdown
from kdsearch.report.page import render
from kdsearch.report.verdict import kept_by, no_student_needed, verdict
from kdsearch.spec import Budget, Cost
from kdsearch.study.summary import Entry, Summary, TeacherEntry

TEACHER = TeacherEntry(
    name="auto", val=0.9916, test=None, flops=2_560_000, params=80_000, latency_ms=0.108,
    latency_low_ms=0.1, latency_high_ms=0.12,
)  # fmt: skip


def entry(trial: int, val: float, latency_ms: float) -> Entry:
    return Entry(
        trial=trial, val=val, test=None, flops=1e6, params=1e4, latency_ms=latency_ms,
        latency_spread_ms=0.0, config={"student.family": "resnet"},
    )  # fmt: skip


def found(*front: Entry, teacher: TeacherEntry = TEACHER, limit: float = 10.0) -> Summary:
    summary, _ = make_study()
    ships = front[-1] if front else None
    return replace(
        summary,
        budget=Budget(latency_ms=limit),
        teacher=teacher,
        front=front,
        controls=(),
        best=None if ships is None else ships.trial,
        shipped=ships,
    )


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def test_the_verdict_begins_with_the_teacher_and_what_a_student_saves() -> None:
    summary = found(entry(3, 0.9861, 0.084))
    assert plain(verdict(summary, [])).startswith(
        "No student is needed: the teacher auto is within the budget of 10 ms, with 0.108 ms and a "
        "validation accuracy of 99.16 %. Trial 3 would save 22.2 % of its latency (0.084 ms "
        "against 0.108 ms) and lose 0.55 points of validation accuracy."
    )


@pytest.mark.parametrize(
    ("val", "latency_ms", "says"),
    [
        (
            0.9926,
            0.054,
            "save 50 % of its latency (0.054 ms against 0.108 ms) and gain 0.10 points",
        ),
        (0.9916, 0.054, "against 0.108 ms) and lose nothing of validation accuracy."),
        (0.9816, 0.216, "save no latency (0.216 ms against 0.108 ms) and lose 1.00 points"),
    ],
)
def test_what_a_student_saves_has_its_sign(val: float, latency_ms: float, says: str) -> None:
    assert says in plain(no_student_needed(found(entry(3, val, latency_ms))))


def test_nothing_is_said_of_a_teacher_over_the_budget_or_below_the_minimum() -> None:
    student = entry(3, 0.98, 0.05)
    assert no_student_needed(found(student, limit=0.11)) == ""  # 0.108, but up to 0.12
    assert no_student_needed(replace(found(student), min_accuracy=0.995)) == ""
    assert no_student_needed(replace(found(student), budget=Budget())) == ""
    assert no_student_needed(found(student)) != ""


def test_a_teacher_is_within_where_every_limited_cost_is_known_and_kept() -> None:
    unknown = replace(TEACHER, latency_ms=None, latency_low_ms=None, latency_high_ms=None)
    assert TEACHER.is_within(Budget(latency_ms=0.12, flops=2_560_000)) is True
    assert TEACHER.is_within(Budget(latency_ms=0.119)) is False
    assert TEACHER.is_within(Budget(latency_ms=1, params=79_999)) is False
    assert TEACHER.is_within(Budget()) is None
    assert unknown.is_within(Budget(latency_ms=1)) is None
    assert unknown.is_within(Budget(latency_ms=1, flops=1)) is False
    assert unknown.is_within(Budget(flops=3e6)) is True


def test_a_teacher_keeps_a_budget_by_the_rule_of_students() -> None:
    budget = Budget(latency_ms=0.119, flops=3e6)
    cost = Cost(flops=2_560_000, latency_ms=0.108, latency_high_ms=0.12)
    assert TEACHER.is_within(budget) is not any(x > 0 for x in budget.violations(cost).values())


def test_before_a_search_the_limited_costs_of_the_teacher_are_named() -> None:
    assert kept_by(TEACHER, Budget(latency_ms=10, flops=4e6)) == (
        "The teacher keeps this budget: 0.108 ms and 2.56 M FLOPs of 10 ms and 4 M FLOPs. "
        "No student is needed; the search shows what one would save."
    )
    assert kept_by(TEACHER, Budget(latency_ms=0.05)) == ""


def front_rows(summary: Summary, columns: int) -> list[list[str]]:
    """Return the cells of the front in a terminal, line by line; no line is too long."""
    out = StringIO()
    show(FrontTable(summary), console=Console(file=out, width=columns))
    lines = out.getvalue().splitlines()
    assert all(len(line) <= columns for line in lines)
    assert "…" not in out.getvalue()
    rows = (line.strip("│").split("│") for line in lines if "│" in line)
    return [[cell.strip() for cell in row] for row in rows]


def test_the_teacher_is_on_the_front_unless_a_student_beats_it() -> None:
    cheap, good, costly = entry(1, 0.98, 0.05), entry(2, 0.995, 0.1), entry(3, 0.999, 0.3)
    assert found(cheap, costly).teacher_place() == 1
    assert found(cheap).teacher_place() == 1
    assert found(costly).teacher_place() == 0
    assert found().teacher_place() == 0
    assert found(cheap, good).teacher_place() is None
    assert found(cheap, costly, limit=0.11).teacher_place() is None


def test_tables_and_json_show_the_teacher_in_its_place() -> None:
    summary = found(entry(1, 0.98, 0.05), entry(3, 0.999, 0.3))
    names = [row[0] for row in tables.front(summary).rows]
    assert [plain(name) for name in names[:3]] == [
        "trial 1 (resnet)", "teacher auto, within the budget", "trial 3 (resnet), to ship",
    ]  # fmt: skip
    assert [row[0] for row in front_rows(summary, 140)] == ["1", "teacher", "3 *"]
    assert summary.to_json()["teacher_within_budget"] is True
    over = found(entry(1, 0.98, 0.05), limit=0.11)
    assert [row[0] for row in tables.front(over).rows][1] == "teacher auto"
    assert [row[0] for row in front_rows(over, 140)] == ["1 *"]
    assert over.to_json()["teacher_within_budget"] is False


def test_page_and_markdown_begin_with_it() -> None:
    summary, records = surrounded(make_study())
    summary = replace(summary, budget=Budget(latency_ms=100))
    facts = {"rankings": rankings(records), "notes": [], "command": "kdsearch run"}
    first = "No student is needed: the teacher resnet34 is within"
    assert f'<p class="lead">{first}' in render(summary, records, **facts)
    assert f"distillation study\n\n{first}" in markdown(summary, records, **facts)


@pytest.mark.parametrize("columns", [80, 140])
def test_a_front_has_whole_names_in_a_terminal(columns: int) -> None:
    one = replace(
        entry(12, 0.98, 0.0513),
        test=0.97,
        config={"student.family": "mobilenet", "method.name": "vitkd"},
    )
    row, *_ = front_rows(found(one), columns)
    assert row == ["12 *", "98.00", "97.00", "0.0513", "1", "0.01", "mobilenet", "vitkd"]
    names = ("timm:mobilenetv3_small_100", "function_matching")
    long = replace(one, config=dict(zip(("student.family", "method.name"), names, strict=True)))
    first, *more = front_rows(found(long), columns)
    assert first[:4] == ["12 *", "98.00", "97.00", "0.0513"]
    shown = [name for row in (first, *more) for name in row[-2:]]
    assert [name.removesuffix(" +") for name in shown if name[:1].isalpha()] == [*names]
