"""Toy images whose views a teacher evaluates, and the sizes of the rows stored."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from toy_data import CPU, tiny_model, toy_data

from kdsearch.data.base import MIXES, POLICIES, Augment
from kdsearch.data.feed import Feed
from kdsearch.data.views import augmented

LOGITS = frozenset({"logits"})
EVERYTHING = frozenset({"logits", "embedding", "stages", "attention", "gradient"})
DATA = toy_data()
IMAGES = DATA.train
FEED = Feed(IMAGES, CPU)
TEACHER = tiny_model().freeze()
VIEW_BYTES = len(IMAGES) * (3 + 64) * 4
STAGE_BYTES = len(IMAGES) * (8 * 8 * 8 + 16 * 4 * 4 + 16 * 2 * 2) * 4
PLAIN = DATA.augment
MIXED = replace(PLAIN, mix="mixup")
RECIPES = [replace(PLAIN, policy=p, mix=m) for p in POLICIES for m in MIXES]


def view_of(index: Tensor, view: int, *, augment: Augment = PLAIN) -> Tensor:
    return augmented(IMAGES, index, view, seed=5, augment=augment)
