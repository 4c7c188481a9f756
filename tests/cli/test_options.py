"""What flags hold is read once, and what cannot be read is told with what can."""

from __future__ import annotations

import pytest

from kdsearch.errors import SpecError
from kdsearch.study.options import read_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("0.5", 0.5), ("30m", 1800), ("2h", 7200), ("1.5d", 129600)],
)
def test_a_duration_is_seconds_or_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert read_duration(text, "--trial-timeout") == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0h", "-1", "2 h", "h", "1e3", "inf", "nan", "2w", "1h30m"]
)
def test_what_is_no_duration_is_told_with_what_is(text: str) -> None:
    with pytest.raises(SpecError, match=r"--trial-timeout '.*': expected seconds .+ as 90s, 30m"):
        read_duration(text, "--trial-timeout")
