"""What is stored of the teacher is what it would say, whoever asks, in whatever batch and order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toy_data import tiny_model, toy_data

from kdsearch.cache import TeacherOutputs
from kdsearch.data.views import augmented
from kdsearch.model import EVAL_BATCH

LOGITS = frozenset({"logits"})
DATA = toy_data()
IMAGES = DATA.train.images
TEACHER = tiny_model().freeze()
VIEW_BYTES = len(IMAGES) * (3 + 64) * 4


def view_of(index: Tensor, view: int, *, seed: int = 5) -> Tensor:
    return augmented(IMAGES, index, view, seed=seed, augment=DATA.augment)


def stored(**settings: int) -> TeacherOutputs:
    return TeacherOutputs(TEACHER, IMAGES, view_seed=5, augment=DATA.augment, **settings)


SHARED = stored()


@settings(max_examples=25)
@given(st.lists(st.integers(0, len(IMAGES) - 1), min_size=1, max_size=40), st.integers(1, 3))
def test_stored_logits_are_the_live_teachers_for_any_batch_and_order(
    rows: list[int], view: int
) -> None:
    index = torch.tensor(rows)
    shown = view_of(index, view)
    outputs = SHARED(shown, index, view, need=LOGITS)
    live = TEACHER.features(shown)
    torch.testing.assert_close(outputs.logits, live.logits)
    torch.testing.assert_close(outputs.embedding, live.embedding)
    assert outputs.stages == ()
    assert not outputs.logits.requires_grad


def test_a_view_is_the_same_whoever_asked_first() -> None:
    one, other = stored(), stored()
    early, late = torch.arange(0, 7), torch.arange(50, 96)
    one(view_of(early, 1), early, 1, need=LOGITS)
    other(view_of(late, 1), late, 1, need=LOGITS)
    answers = [cache(view_of(early, 1), early, 1, need=LOGITS).logits for cache in (one, other)]
    assert torch.equal(*answers)


def test_views_differ() -> None:
    index = torch.arange(20)
    first, second = (SHARED(view_of(index, v), index, v, need=LOGITS).logits for v in (1, 2))
    assert not torch.allclose(first, second)


def test_more_images_than_a_batch_are_stored_in_order() -> None:
    many = DATA.train.images.repeat(4, 1, 1, 1)
    assert len(many) > EVAL_BATCH
    cache = TeacherOutputs(TEACHER, many, view_seed=5, augment=DATA.augment)
    index = torch.arange(len(many))
    shown = augmented(many, index, 1, seed=5, augment=DATA.augment)
    torch.testing.assert_close(cache(shown, index, 1, need=LOGITS).logits, TEACHER(shown))


@pytest.mark.parametrize(("max_bytes", "views"), [(0, 0), (VIEW_BYTES - 1, 0), (VIEW_BYTES, 1)])
def test_beyond_its_bytes_the_live_teacher_answers(max_bytes: int, views: int) -> None:
    """What is stored ignores the images that are shown, what is live does not."""
    cache = stored(max_bytes=max_bytes)
    index = torch.arange(4)
    blank = torch.zeros_like(IMAGES[:4])
    for view in (1, 2, 3):
        expected = TEACHER(view_of(index, view)) if view <= views else TEACHER(blank)
        torch.testing.assert_close(cache(blank, index, view, need=LOGITS).logits, expected)


@pytest.mark.parametrize("need", [{"stages"}, {"logits", "stages"}])
def test_asked_for_stages_the_live_teacher_answers(need: set[str]) -> None:
    index = torch.arange(4)
    shown = view_of(index, 1)
    outputs, live = SHARED(shown, index, 1, need=frozenset(need)), TEACHER.features(shown)
    torch.testing.assert_close(outputs.logits, live.logits)
    torch.testing.assert_close(outputs.embedding, live.embedding)
    torch.testing.assert_close(outputs.stages, live.stages)
    assert len(outputs.stages) == 3
    assert not outputs.logits.requires_grad
