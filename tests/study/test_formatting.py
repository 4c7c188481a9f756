"""Durations keep their form at every border between units."""

from __future__ import annotations

import pytest

from kdsearch.study.formatting import SPACE, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (7.5, "7.5 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (3599.6, "1 h 00 min"),
        (3725, "1 h 02 min"),
    ],
)
def test_a_duration_has_the_largest_unit_that_it_reaches_once_rounded(
    seconds: float, text: str
) -> None:
    assert duration(seconds).replace(SPACE, " ") == text
