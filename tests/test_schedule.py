"""Factors over the progress of a training."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdsearch.errors import SpecError
from kdsearch.schedules import SCHEDULES, parse_schedule


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("constant", (1, 1, 1, 1, 1)),
        ("linear", (1, 0.75, 0.5, 0.25, 0)),
        ("cosine", (1, 0.8535534, 0.5, 0.1464466, 0)),
        ("decay", (1, 10**-0.25, 10**-0.5, 10**-0.75, 0.1)),
        ("linear:0->2", (0, 0.5, 1, 1.5, 2)),
        ("linear:0->1@0-0.5", (0, 0.5, 1, 1, 1)),
        ("linear:0->1@0.5-1", (0, 0, 0, 0.5, 1)),
        ("decay:4->1", (4, 4**0.75, 2, 4**0.25, 1)),
        ("cosine:1->0.5@0.5-1", (1, 1, 1, 0.75, 0.5)),
    ],
)
def test_factor_at_each_quarter(text, values):
    schedule = parse_schedule("x", text)
    assert [schedule(i / 4) for i in range(5)] == pytest.approx(values)


@given(st.sampled_from(SCHEDULES), st.floats(0, 1))
def test_factor_stays_between_its_ends(kind, progress):
    schedule = parse_schedule("x", kind)
    low, high = sorted((schedule.start, schedule.end))
    assert low - 1e-12 <= schedule(progress) <= high + 1e-12


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("liner", "did you mean 'linear'"),
        ("linear:1", "is not one of constant, linear, cosine, decay, nor such as"),
        ("linear@0.5-0.5", "must rise within 0 to 1"),
        ("linear@0-1.5", "must rise within 0 to 1"),
        ("constant:2->2", "a constant is 1"),
        ("decay:1->0", "never reaches 0"),
        ("", "is not one of"),
    ],
)
def test_other_texts_are_refused_with_what_is_accepted(text, says):
    with pytest.raises(SpecError, match=f"method.alpha_schedule: .*{says}"):
        parse_schedule("method.alpha_schedule", text)
