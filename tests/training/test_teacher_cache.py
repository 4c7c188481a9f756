"""What is stored of the teacher is what it would say, whoever asks, in whatever batch and order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_cache import (
    DATA,
    EVERYTHING,
    FEED,
    IMAGES,
    LOGITS,
    MIXED,
    PLAIN,
    RECIPES,
    STAGE_BYTES,
    TEACHER,
    VIEW_BYTES,
    view_of,
)
from toy_data import CPU, rows_of

from kdsearch.data.base import Augment
from kdsearch.data.feed import Feed
from kdsearch.data.views import augmented
from kdsearch.models import students
from kdsearch.models.model import EVAL_BATCH, Model
from kdsearch.spec import StudentSpec
from kdsearch.training.teacher_cache import TeacherOutputs


def stored(**settings: int) -> TeacherOutputs:
    return TeacherOutputs(TEACHER, FEED, view_seed=5, **settings)


def is_stored(cache: TeacherOutputs, view: int, *, augment: Augment = PLAIN, need=LOGITS) -> bool:
    """Say whether the cache answers without looking at the images that it is shown."""
    index = torch.arange(4)
    blank = torch.zeros_like(IMAGES.at(slice(4)))
    seen = rows_of(cache, blank, index, view, need=need, augment=augment).logits
    if torch.allclose(seen, TEACHER(blank)):
        return False
    torch.testing.assert_close(seen, TEACHER(view_of(index, view, augment=augment)))
    return True


SHARED = stored()


@settings(max_examples=40)
@given(
    st.lists(st.integers(0, len(IMAGES) - 1), min_size=1, max_size=40),
    st.integers(1, 3),
    st.sampled_from(RECIPES),
)
def test_stored_outputs_are_the_live_teachers_for_any_batch_order_and_augmentation(
    rows: list[int], view: int, augment: Augment
) -> None:
    index = torch.tensor(rows)
    shown = view_of(index, view, augment=augment)
    outputs = rows_of(SHARED, shown, index, view, need=EVERYTHING, augment=augment)
    live = TEACHER.features(shown, need=EVERYTHING)
    torch.testing.assert_close(outputs.logits, live.logits)
    torch.testing.assert_close(outputs.embedding, live.embedding)
    torch.testing.assert_close(outputs.stages, live.stages)
    torch.testing.assert_close(outputs.gradient, live.gradient)
    assert len(outputs.stages) == 3
    assert outputs.index is index
    assert not outputs.logits.requires_grad


def test_a_view_does_not_depend_on_the_trial_that_needs_it_first() -> None:
    one, other = stored(), stored()
    early, late = torch.arange(0, 7), torch.arange(50, 96)
    for augment in (PLAIN, MIXED):
        for cache, index in ((one, early), (other, late)):
            rows_of(
                cache, view_of(index, 1, augment=augment), index, 1, need=LOGITS, augment=augment
            )
        shown = view_of(early, 1, augment=augment)
        answers = [
            rows_of(cache, shown, early, 1, need=LOGITS, augment=augment) for cache in (one, other)
        ]
        assert torch.equal(answers[0].logits, answers[1].logits)


def test_views_and_augmentations_differ() -> None:
    index = torch.arange(20)
    answers = [
        rows_of(
            SHARED, view_of(index, view, augment=augment), index, view, need=LOGITS, augment=augment
        )
        for view in (1, 2)
        for augment in (PLAIN, MIXED)
    ]
    for i, one in enumerate(answers):
        assert not any(torch.allclose(one.logits, other.logits) for other in answers[i + 1 :])


def test_more_images_than_a_batch_are_stored_in_order() -> None:
    many = DATA.train.take(torch.arange(96).repeat(4))
    assert len(many) > EVAL_BATCH
    cache = TeacherOutputs(TEACHER, Feed(many, CPU), view_seed=5)
    index = torch.arange(len(many))
    shown = augmented(many, index, 1, seed=5, augment=PLAIN)
    outputs = rows_of(cache, shown, index, 1, need=LOGITS, augment=PLAIN)
    torch.testing.assert_close(outputs.logits, TEACHER(shown))


@pytest.mark.parametrize("augment", [PLAIN, MIXED], ids=["plain", "mixed"])
def test_outputs_are_the_same_over_images_that_do_not_stay_on_the_device(augment: Augment) -> None:
    many, index = DATA.train.take(torch.arange(300) % 96), torch.arange(300)
    shown = augmented(many, index, 1, seed=5, augment=augment)
    resident, read_ahead = (
        rows_of(
            TeacherOutputs(TEACHER, Feed(many, CPU, max_bytes=size), view_seed=5),
            shown,
            index,
            1,
            need=EVERYTHING,
            augment=augment,
        )
        for size in (2**20, 0)
    )
    assert torch.equal(resident.logits, read_ahead.logits)
    assert torch.equal(resident.gradient, read_ahead.gradient)
    torch.testing.assert_close(read_ahead.logits, TEACHER(shown))


@pytest.mark.parametrize(
    ("max_bytes", "views"),
    [(0, 0), (VIEW_BYTES - 1, 0), (VIEW_BYTES, 1), (2 * VIEW_BYTES, 2)],
)
def test_beyond_its_bytes_the_live_teacher_answers(max_bytes: int, views: int) -> None:
    cache = stored(max_bytes=max_bytes)
    assert [is_stored(cache, view) for view in (1, 2, 3)] == [view <= views for view in (1, 2, 3)]


def test_unless_needed_nothing_but_logits_and_embeddings_is_stored() -> None:
    cache = stored(max_bytes=VIEW_BYTES)
    index = torch.arange(4)
    outputs = rows_of(cache, view_of(index, 1), index, 1, need=LOGITS, augment=PLAIN)
    assert outputs.stages == ()
    assert outputs.gradient is None


@pytest.mark.parametrize("part", ["stages", "gradient"])
def test_large_parts_are_stored_while_half_of_the_bytes_stays_free(part: str) -> None:
    large = STAGE_BYTES if part == "stages" else len(IMAGES) * 16 * 2 * 2 * 4
    need = frozenset({part})
    for free, fits in ((0, True), (-1, False)):
        cache = stored(max_bytes=2 * (VIEW_BYTES + large + free))
        assert is_stored(cache, 1, need=need) is fits
        assert not is_stored(cache, 2, need=need)
        assert is_stored(cache, 2)


def test_parts_needed_later_are_added_to_a_view() -> None:
    cache = stored()
    index = torch.tensor([3, 90])
    for need in (LOGITS, frozenset({"stages"}), EVERYTHING):
        outputs = rows_of(cache, view_of(index, 1), index, 1, need=need, augment=PLAIN)
        live = TEACHER.features(view_of(index, 1), need=EVERYTHING)
        torch.testing.assert_close(outputs.logits, live.logits)
        torch.testing.assert_close(outputs.stages, live.stages if need != LOGITS else ())
    torch.testing.assert_close(outputs.gradient, live.gradient)


def test_attention_is_stored_when_needed() -> None:
    torch.manual_seed(0)
    spec = StudentSpec(family="vit", knobs={"depth": 4})
    network = students.build(spec, in_channels=1, num_classes=3, data_size=DATA.size)
    teacher = Model("vit", network, TEACHER.preprocess).freeze()
    cache = TeacherOutputs(teacher, FEED, view_seed=5)
    index, need = torch.tensor([3, 90]), frozenset({"attention"})
    shown = view_of(index, 1)
    live = teacher.features(shown)
    for seen in (shown, torch.zeros_like(shown)):
        reported = rows_of(cache, seen, index, 1, need=need, augment=PLAIN)
        torch.testing.assert_close(reported.attention, live.attention)
    assert len(reported.attention) == 4
    assert reported.stages == ()


def test_parts_that_do_not_fit_come_from_the_live_teacher() -> None:
    cache = stored(max_bytes=VIEW_BYTES)
    index = torch.arange(4)
    shown = view_of(index, 1)
    outputs = rows_of(cache, shown, index, 1, need=EVERYTHING, augment=PLAIN)
    live = TEACHER.features(shown, need=EVERYTHING)
    assert torch.equal(outputs.stages[-1], live.stages[-1])
    assert outputs.gradient is not None
    assert outputs.index is index
    assert not outputs.stages[-1].requires_grad


def test_views_of_other_augmentations_make_room_oldest_first() -> None:
    cache = stored(max_bytes=3 * VIEW_BYTES)
    for view in (1, 2, 3):
        assert is_stored(cache, view)
    assert is_stored(cache, 1, augment=MIXED)  # in the place of view 1
    assert is_stored(cache, 2, augment=MIXED)  # of view 2
    blank, index = torch.zeros_like(IMAGES.at(slice(1))), torch.arange(1)
    kept = rows_of(cache, blank, index, 3, need=LOGITS, augment=PLAIN).logits
    torch.testing.assert_close(kept, TEACHER(view_of(index, 3)))
    assert is_stored(cache, 3, augment=MIXED)  # of view 3
    assert not is_stored(cache, 4, augment=MIXED)
    assert is_stored(cache, 1)  # in the place of mixed view 1


def test_nothing_is_dropped_for_a_view_that_does_not_fit_anyway() -> None:
    cache = stored(max_bytes=VIEW_BYTES)
    assert is_stored(cache, 1)
    assert not is_stored(cache, 1, augment=MIXED, need=frozenset({"stages"}))
    blank, index = torch.zeros_like(IMAGES.at(slice(1))), torch.arange(1)
    kept = rows_of(cache, blank, index, 1, need=LOGITS, augment=PLAIN).logits
    torch.testing.assert_close(kept, TEACHER(view_of(index, 1)))
