"""`kdsearch check` prints tables for people and one JSON document for programs."""

from __future__ import annotations

import json

import pytest
from shell import SPACE, Shell


def test_check_prints_tables_and_json(shell: Shell) -> None:
    file = shell.folder / "space.yaml"
    file.write_text(SPACE)
    line = ("check", "--out", str(shell.out), "--teacher-epochs", "1", "--space", str(file))
    answer = shell.type(*line)
    assert answer.code == 0, answer
    for message in (
        "Data digits: 10 classes",
        "Building the students\nLoading the teacher auto\n",
        "Measuring the calibration of the teacher\nTrying methods on students: ",
        "Trying methods on students: ",
        "Teacher on digits",
        "359 val",
        "Capacity",
        "smallest",
        "Methods",
        "yes",
    ):
        assert message in answer.stdout
    assert max(map(len, answer.stdout.split("Teacher auto")[0].splitlines())) <= 80
    assert "\x1b" not in answer.stdout
    config = shell.folder / "config.yaml"
    config.write_text("batch-size: 1\nset: {train.lr: 0.05}\n")
    answer = shell.type(*line, "--config", str(config), "--student", "mobilenet", "--json")
    assert answer.code == 0, answer
    assert answer.stderr == ""
    found = json.loads(answer.stdout)
    assert [student["family"] for student in found["students"]] == ["mobilenet"]
    assert [tried["method"] for tried in found["methods"]] == ["kd", "at"]
    assert found["batch_size"] == 1
    assert found["inventory"][0].startswith("Data digits: 10 classes; train ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--set", "student.width=1"), "a student's knobs need --student"),
        (("--student", "resnet", "--set", "student.widht=1"), "did you mean 'width'"),
        (("--set", "method.beta=2"), "--set 'method.beta=2': expected train.KNOB=VALUE"),
        (("--set", "train.foo=1"), "unknown 'foo'"),
        (("--student", "resnett"), "did you mean 'resnet'"),
        (("--batch-size", "0"), "--batch-size 0: expected a number above 0"),
        (("--space", "digts"), "did you mean 'digits'"),
        (("--teacher", "auot"), "did you mean 'auto'"),
        (("--data", "digts"), "did you mean 'digits'"),
    ],
)
def test_check_refuses(shell: Shell, arguments: tuple[str, ...], message: str) -> None:
    assert message in shell.refused("check", "--teacher-epochs", "1", *arguments)
