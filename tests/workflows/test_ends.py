"""An end of a range is one to widen only where family and method go on beyond it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kdsearch.report.advice import edges
from kdsearch.space_yaml import parse_space
from kdsearch.workflows.ends import ends

SPACE = """
student:
  family:
    choice:
      resnet:
        width: {float: [0.25, 1.0], log: true}
        depth: {int: [3, 6]}
      mobilenet:
        expansion: {int: [1, 6]}
method:
  name:
    choice:
      kd:
        temperature: {float: [2.0, 8.0]}
        alpha: {float: [0.5, 1.0]}
train:
  epochs: 2
"""
DATA = SimpleNamespace(
    task="classification",
    classes=("a", "b"),
    metric="",
    channels=3,
    size=(32, 32),
    colours=(),
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
)


@pytest.mark.parametrize(
    ("family", "knobs", "at_edge", "fixed"),
    [
        ("resnet", {"width": 0.25, "depth": 3}, {"width", "depth"}, {"depth"}),
        ("resnet", {"width": 1.0, "depth": 6}, {"width", "depth"}, set()),
        ("resnet", {"width": 0.5, "depth": 4}, set(), set()),
        ("mobilenet", {"expansion": 6}, {"expansion"}, {"expansion"}),
    ],
)
def test_the_end_of_a_family_is_no_edge(
    family: str, knobs: dict[str, float], at_edge: set[str], fixed: set[str]
) -> None:
    params = {
        "student.family": family,
        **{f"student.{family}.{name}": value for name, value in knobs.items()},
        "method.name": "kd",
        "method.kd.temperature": 8.0,  # beyond is allowed
        "method.kd.alpha": 1.0,  # beyond is not
        "train.epochs": 2,
    }
    space = parse_space(SPACE)
    full = {f"student.{family}.{name}" for name in at_edge}
    found = {edge.name for edge in edges(space, params)}
    assert found == full | {"method.kd.temperature", "method.kd.alpha"}
    closed = {f"student.{family}.{name}" for name in fixed}
    assert set(ends(space, params, DATA)) == closed | {"method.kd.alpha"}  # type: ignore[arg-type]
