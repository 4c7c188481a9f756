"""Tables in a terminal show names from outside as they are: no markup, emoji or escape sequence."""

from __future__ import annotations

import re
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from made_up import make_study
from rich.console import Console

from kdsearch.cli.export import _table as files_table
from kdsearch.cli.live import StudyConsole
from kdsearch.cli.result import result
from kdsearch.cli.tables import (
    FrontTable,
    TextTable,
    candidates_table,
    check_tables,
    comparison_table,
    show,
)
from kdsearch.deploy.files import ExportedFile
from kdsearch.deploy.package import Agreement
from kdsearch.deploy.timing import Latency
from kdsearch.hpo.statistics import Spread
from kdsearch.report.comparison import ComparedStudy, Comparison
from kdsearch.study.summary import CandidateEntry, TargetInfo, Trainings
from kdsearch.tasks import ACCURACY
from kdsearch.workflows.calibration import Calibration
from kdsearch.workflows.check_report import CheckReport, MethodCheck, StudentCheck, TeacherCheck
from kdsearch.workflows.export import Exported

NAMES = ["[red]x[/red]", "a[/]b", "[bold]", "\\[link=file:x]", ":cat:", "[1, 2]"]


def printed(*parts: str | TextTable) -> str:
    out = StringIO()
    show(*parts, console=Console(file=out, width=240, force_terminal=True, color_system=None))
    return out.getvalue()


def checked(name: str) -> CheckReport:
    sharp = Calibration(images=9, accuracy=0.5, confidence=0.5, nll=1.0, ece=0.1, temperature=1.0)
    return CheckReport(
        data=name,
        inventory=(),
        classes=2,
        metric=ACCURACY,
        space=name,
        batch_size=8,
        teacher_flops=1,
        teacher_params=1,
        teachers=(TeacherCheck(name=name, validation=sharp, train=sharp),),
        students=(StudentCheck(family=name, size="only", resolution=8, knobs={}),),
        methods=(
            MethodCheck(method=name, family=name, usable=True),
            MethodCheck(method=name, family="resnet", usable=False, reason=f"no {name}"),
        ),
        notes=(),
    )


def exported(name: str) -> Exported:
    same = Agreement(n=9, same=1.0, max_abs=0.0, max_rel=0.0)
    file = ExportedFile(
        format="onnx",
        name=name,
        runtime="onnxruntime",
        target=TargetInfo(),
        bytes=1000,
        val=0.5,
        drop=0.0,
        agreement=same,
        predicted=None,
        latency=Latency(ms=1.0, low_ms=1.0, high_ms=1.0, spread_ms=0.0, contention=1.0),
    )
    return Exported(path=Path("best"), metric=ACCURACY, files=(file,), best=None)


def compared(name: str) -> Comparison:
    sides = [
        ComparedStudy(
            study=study,
            front=((0, 0.9, 1e6),),
            hypervolume=0.5,
            trials=1,
            trained=1,
            epochs=1,
            seconds=1.0,
        )
        for study in (name, f"{name}2")
    ]
    return Comparison(
        metric=ACCURACY,
        axis="flops",
        reference=(0.0, 1e7),
        sides=(sides[0], sides[1]),
        targets=("cpu", name),
        differs=(),
    )


@pytest.mark.parametrize("name", NAMES)
def test_names_in_brackets_are_shown_in_every_table(name: str) -> None:
    summary, _ = make_study(name=name)
    odd = {"student.family": f"{name}.py:Net", "method.name": f"of {name}"}
    summary = replace(summary, front=[replace(each, config=odd) for each in summary.front])
    front = printed(FrontTable(summary))
    assert f"Front of {name}: " in front
    assert front.count(f" {name}.py:Net ") == front.count(f" of {name} ") == len(summary.front)

    val = Spread(mean=0.5, sd=0.1, low=0.4, high=0.6, values=(0.4, 0.6))
    trained = Trainings(method=name, trials=(1, 2), seeds=(0, 1), val=val, test=None)
    again = CandidateEntry(trial=1, roles=(), shipped=None, trained=trained, controls=())
    assert name in printed(*candidates_table(replace(summary, candidates=[again])))

    teacher, students, methods = map(printed, check_tables(checked(name)))
    assert f"Teacher on {name}, 2 classes" in teacher
    assert teacher.count(name) == 2
    assert name in students
    assert f"│ {name} " in methods
    assert f"resnet: no {name} " in methods

    assert f"│ {name} " in printed(files_table(exported(name)))
    both = printed(*comparison_table(compared(name)))
    head = both.splitlines()[1].split("┃")
    assert [cell.strip() for cell in head[2:4]] == [name, f"{name}2"]
    assert f"cpu; {name}2 on {name}\n" in both


@pytest.mark.parametrize(
    "name",
    [
        "timm:resnet50.a1_in1k",
        "results/phones-1/best/student.onnx",
        "timm:mobilenetv3_small_050.lamb_in1k",
    ],
)
def test_lines_of_a_long_name_end_after_a_separator(name: str) -> None:
    out = StringIO()
    found = checked(name)
    priced = replace(found.students[0], flops=10**6, params=10**6, flops_ratio=9, params_ratio=9)
    show(
        *check_tables(replace(found, students=(priced, replace(priced, size="smallest"))))[:2],
        console=Console(file=out, width=80),
    )
    rows = [row for row in out.getvalue().splitlines() if row.startswith("│")]
    cells = [row.split("│")[1].strip() for row in rows]
    assert "".join(cells) == 3 * name
    assert all(row == "" or row[-1] in "/.:_-" or name.endswith(row) for row in cells)
    assert all(len(row) <= 80 for row in rows)


@pytest.mark.parametrize("name", NAMES)
def test_names_in_brackets_are_shown_in_lines_and_in_the_live_view(name: str) -> None:
    assert printed(f"Reading {name}") == f"Reading {name}\n"
    out = StringIO()
    console = Console(file=out, width=120, force_terminal=True, color_system=None)
    callback = StudyConsole(console=console)
    callback.attempt(1, 2, name)
    console.print(callback._render())
    assert out.getvalue() == f"Methods: 1 of 2, {name}\n"


def test_no_escape_sequence_reaches_the_terminal_from_a_cell() -> None:
    table = TextTable(title="a\x1b[2J", caption="\u202eb")
    table.add_column("\x1b]0;owned\x07")
    table.add_row("c\x1b[31m\nd", style="bold")
    shown = printed(table)
    assert "\x1b" not in shown.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert "\u202e" not in shown
    for text in ("a\\x1b[2J", "\\u202eb", "\\x1b]0;owned\\x07", "c\\x1b[31m", "│ d "):
        assert text in shown


@pytest.mark.parametrize("length", range(12, 20))
def test_the_box_keeps_a_number_and_its_unit_on_one_line(length: int) -> None:
    """A longer name of the student moves every break between words."""
    summary, _ = make_study()
    assert summary.shipped is not None
    config = {**summary.shipped.config, "student.family": "t" * length}
    summary = replace(summary, shipped=replace(summary.shipped, config=config))
    rows = printed(*result(summary, Path("results/phones"))).splitlines()
    box = [row for row in rows if row.startswith("│")]
    assert len(box) > 6
    assert all(len(row) == 80 and row.endswith(" │") for row in box)
    assert [row for row in box if re.match("│ +(%|ms|MB|M|k|points)[ ,;:.)]", row)] == []
