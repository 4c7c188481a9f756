from __future__ import annotations

from itertools import combinations
from math import log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdsearch.errors import SpecError
from kdsearch.spec import MAPPINGS
from kdsearch.training.pairing import check_mapping, pair_stages

CNN = [4.0, 8.0, 16.0, 32.0]
VIT = [16.0] * 12

strides = st.lists(st.sampled_from([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]), min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("strategy", "student", "teacher", "pairs"),
    [
        ("last", CNN, VIT, [(3, 11)]),
        ("even", CNN, VIT, [(0, 2), (1, 5), (2, 8), (3, 11)]),
        ("even", VIT, CNN[:3], [(3, 0), (7, 1), (11, 2)]),
        ("even", CNN[:3], CNN, [(0, 0), (1, 1), (2, 3)]),
        ("stride", CNN, CNN, [(0, 0), (1, 1), (2, 2), (3, 3)]),
        ("stride", CNN, [2.0, 4.0, 8.0, 16.0, 32.0], [(0, 1), (1, 2), (2, 3), (3, 4)]),
        ("stride", [8.0, 32.0], CNN, [(0, 1), (1, 3)]),
        ("stride", CNN, [16.0], [(2, 0)]),
        ("stride", [16.0, 16.0, 16.0], VIT, [(0, 3), (1, 7), (2, 11)]),
        ("0:1,2:3", CNN, CNN, [(0, 1), (2, 3)]),
        (" 1 : 0 , -1:-1", CNN, VIT, [(1, 0), (3, 11)]),
        ("0:0,0:1", CNN, CNN, [(0, 0), (0, 1)]),
    ],
)
def test_strategy_pairs(strategy, student, teacher, pairs):
    assert pair_stages(strategy, student, teacher) == pairs


@pytest.mark.parametrize("strategy", ["even", "stride"])
@given(student=strides, teacher=strides)
@settings(deadline=None)
def test_each_stage_of_the_shorter_side_is_used_once_and_in_order(strategy, student, teacher):
    pairs = pair_stages(strategy, student, teacher)
    assert len(pairs) == min(len(student), len(teacher))
    for side, stages in zip(zip(*pairs, strict=True), (student, teacher), strict=True):
        assert list(side) == sorted(set(side))
        assert set(side) <= set(range(len(stages)))


@given(student=strides, teacher=strides)
@settings(deadline=None)
def test_even_and_last_hold_the_deepest_pair(student, teacher):
    deepest = (len(student) - 1, len(teacher) - 1)
    assert pair_stages("last", student, teacher) == [deepest]
    assert pair_stages("even", student, teacher)[-1] == deepest


@given(student=strides, teacher=strides)
@settings(max_examples=200, deadline=None)
def test_stride_finds_the_least_total_ratio(student, teacher):
    def total(pairs):
        return sum(abs(log2(student[s] / teacher[t])) for s, t in pairs)

    count = min(len(student), len(teacher))
    every = (
        list(zip(left, right, strict=True))
        for left in combinations(range(len(student)), count)
        for right in combinations(range(len(teacher)), count)
    )
    assert total(pair_stages("stride", student, teacher)) == min(map(total, every))


@given(student=strides, teacher=strides)
@settings(deadline=None)
def test_stride_is_symmetric_where_strides_decide(student, teacher):
    student, teacher = sorted(set(student)), sorted(set(teacher))
    pairs = pair_stages("stride", student, teacher)
    if len(student) != len(teacher):
        assert pair_stages("stride", teacher, student) == [(t, s) for s, t in pairs]


@pytest.mark.parametrize("text", ["lst", "", "0", "0:1;2:3", "0:1,", "a:b", "0:1.5"])
def test_text_that_is_no_mapping_is_refused(text):
    with pytest.raises(SpecError, match="is not one of last, even, stride"):
        check_mapping(text)


def test_misspelt_strategy_gets_a_suggestion():
    with pytest.raises(SpecError, match="did you mean 'stride'"):
        pair_stages("strides", CNN, CNN)


@pytest.mark.parametrize("text", ["0:4", "-5:0", "9:9"])
def test_stage_that_is_not_there_is_refused_with_those_that_are(text):
    with pytest.raises(SpecError, match="has stages 0 to 3, from the deepest back -1 to -4"):
        pair_stages(text, CNN, CNN)


def test_pair_named_twice_is_refused():
    with pytest.raises(SpecError, match="names a pair twice"):
        pair_stages("3:3,-1:-1", CNN, CNN)


@pytest.mark.parametrize("strategy", [*MAPPINGS, "0:0"])
def test_no_stages_are_refused(strategy):
    with pytest.raises(SpecError, match="the student has 4 stages, the teacher 0"):
        pair_stages(strategy, CNN, [])
