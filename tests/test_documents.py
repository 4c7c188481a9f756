"""Documents from outside are plain values or refused within a second, never a hang or a crash."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from kdsearch.documents import (
    MAX_VALUES,
    DocumentError,
    parse_json,
    parse_yaml,
    read_text,
)
from kdsearch.errors import StudyError
from kdsearch.study.config import FORMAT, StudyConfig, read_config
from kdsearch.study.preparation import read_stage
from kdsearch.study.run_log import read_progress

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(40))
DEEP = "[" * 5000 + "]" * 5000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "line 2: '*a0': references are not supported"),
        ("a: &a {b: *a}", "references are not supported"),
        (f"a: {DEEP}", "more than 20 levels deep"),
        ("a: {b: {c: 1, c: 2}}", "line 1: 'c' is defined twice"),
        ("seed: -1\nseed: 0", "line 2: 'seed' is defined twice"),
        ("a: !!binary aGk=", "is not supported"),
        ("a: !!set {b}", "is not supported"),
        ("a: [" + "1, " * (MAX_VALUES + 1) + "]", "more than 20000 values"),
        ("? [a]\n: b", "unhashable"),
        ("a: " + "9" * 5000, "digits"),
        ("a: [", "expected the node content"),
        ("a: \0", "special characters are not allowed"),
    ],
)
def test_yaml_that_is_not_plain_is_refused(text: str, reason: str) -> None:
    with pytest.raises(DocumentError, match=reason.replace("*", r"\*")):
        parse_yaml(text)


def test_plain_yaml_is_read() -> None:
    text = "a: 2020-01-01\nb: [1, 2.5, true, null, ~]\nc: {d: 'x'}\n"
    assert parse_yaml(text) == {"a": "2020-01-01", "b": [1, 2.5, True, None, None], "c": {"d": "x"}}
    assert parse_yaml("") is None


def test_deep_json_is_refused() -> None:
    assert parse_json('{"a": [1]}') == {"a": [1]}
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 100_000)


def test_a_pipe_and_an_endless_file_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DocumentError, match="a pipe"):
        read_text(tmp_path / "pipe")
    with pytest.raises(DocumentError, match="larger than the limit of 1000000 bytes"):
        read_text(Path("/dev/zero"))


@pytest.mark.parametrize("text", [BOMB, f"data: {DEEP}", "seed: 0\nseed: 1", "format: 2"])
def test_a_damaged_study_yaml_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(StudyError, match="is damaged"):
        read_config(tmp_path)


SPACE = "student:\n  family: resnet\n"
LEFT_OUT = "left out"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("space", "student: [\n a: {", "space:2: not YAML: expected the node content"),
        ("space", SPACE + " resolution: 8", "space:3: not YAML: expected <block end>"),
        ("space", "a: {float: [1]}", "space:1: a: expected {float: [low, high]}); restore"),
        ("space", "a: {float: [1]}\nb: []\nc: []", "high]}; 2 more mistakes); restore it"),
        ("space", "", "space: expected a mapping of names to dimensions"),
        ("space", 5, "space: Input should be a valid string"),
        ("epochs", "many", "epochs: Input should be a valid integer"),
        ("epochs", -1, "--epochs -1: expected 1 to 1000000"),
        ("budget_shares", {"budget_ms": "x"}, "budget_shares.budget_ms: Input should be"),
        ("colour", "red", "colour: Unexpected keyword argument"),
        ("versions", LEFT_OUT, "versions: Field required"),
    ],
)
def test_a_mistake_in_study_yaml_is_one_line_with_its_key(
    key: str, value: object, reason: str, tmp_path: Path
) -> None:
    content = {"format": FORMAT, **asdict(StudyConfig(space=SPACE)), "versions": {}}
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(content))
    assert read_config(tmp_path) == StudyConfig(space=SPACE)
    content[key] = value
    file.write_text(yaml.safe_dump({k: v for k, v in content.items() if v != LEFT_OUT}))
    with pytest.raises(StudyError, match=rf"^{re.escape(str(file))} is damaged \(") as refused:
        read_config(tmp_path)
    assert reason in str(refused.value)
    assert str(refused.value).endswith("); restore it, or start another study")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "read"), [("progress.json", read_progress), ("preparing.json", read_stage)]
)
def test_a_mistake_in_a_file_of_a_run_is_one_line_with_its_key(
    name: str, read: Callable[[Path], object], tmp_path: Path
) -> None:
    (tmp_path / name).write_text('{"seconds": "long"}')
    expected = rf"{name} is damaged \(\w+: Field required; \d+ more mistakes\); delete it$"
    with pytest.raises(StudyError, match=expected):
        read(tmp_path)
    (tmp_path / name).write_bytes(b"\xff")
    with pytest.raises(StudyError, match=f"{name} is damaged .*; delete it$"):
        read(tmp_path)
