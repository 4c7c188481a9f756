"""Times as people write them."""

from __future__ import annotations

import pytest

from kdsearch.errors import SpecError
from kdsearch.flags import read_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("2h", 7200), ("90s", 90), ("30m", 1800), ("1.5h", 5400), ("45", 45), ("0.5", 0.5)],
)
def test_a_time_is_read_in_seconds(text: str, seconds: float) -> None:
    assert read_duration(text, "--time-limit") == seconds


@pytest.mark.parametrize("text", ["", "0", "0h", "-1", "2 hours", "1e3", "nan", "inf", "h", "2hh"])
def test_what_is_no_time_is_refused_with_what_is_accepted(text: str) -> None:
    with pytest.raises(SpecError, match=r"--time-limit .*2h, 30m, 90s"):
        read_duration(text, "--time-limit")
