"""Documents from outside are plain values or refused within a second, never a hang or a crash."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kdsearch.documents import (
    MAX_VALUES,
    DocumentError,
    parse_json,
    parse_yaml,
    read_text,
)
from kdsearch.errors import StudyError
from kdsearch.study.config import read_config

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
