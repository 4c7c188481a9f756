"""Boxes of a teacher on the plain training images, found once and kept on disk.

A step moves them as it moves the true boxes, so one pass serves every view.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from kdsearch.data.base import Augment
from kdsearch.data.boxes import PADDING
from kdsearch.data.feed import Feed
from kdsearch.models.boxes import shown
from kdsearch.models.model import Model, eval_batch
from kdsearch.training.teacher_cache.disk import ViewFiles
from kdsearch.training.teacher_cache.parts import BOXES, Parts, View

LEAST_SCORE = 0.05  # of a box that is kept
_PLAIN = View(Augment(pad=0, flip=False), 0)  # of no training: its views count from 1
_GROUP, _NAME = "boxes", "boxes"
_log = logging.getLogger(__name__)


@torch.no_grad()
def boxes_on(teacher: Model, feed: Feed, files: ViewFiles | None) -> Tensor:
    """Return the teacher's boxes on each image, float32 [N, n, 6], on the feed's device.

    A box is x1, y1, x2, y2 in fractions of the image, a score from LEAST_SCORE, and a class; of
    those of one object the best is kept (non-maximum suppression). n: the most of an image, at
    least 1; the others are padded. files: where they are kept; None: nowhere.
    """
    if files is None:
        return _found(teacher, feed).to(feed.device)
    try:
        with files.making(_PLAIN):
            parts = files.load(_PLAIN, _GROUP, is_valid=lambda found: _fits(found, len(feed)))
            if parts is None:
                parts = {_NAME: (_found(teacher, feed),)}
                if files.make_room(parts[_NAME][0].nbytes, BOXES):
                    files.save(_PLAIN, _GROUP, parts)
    except (OSError, SafetensorError) as error:
        _log.warning("the teacher's boxes are not written to disk: %s", error)
        parts = {_NAME: (_found(teacher, feed),)}
    return parts[_NAME][0].to(feed.device)


def _fits(found: Parts, count: int) -> bool:
    """Return whether stored boxes are those of so many images."""
    (boxes,) = found[_NAME]
    return boxes.dtype == torch.float32 and boxes.shape[0] == count and boxes.shape[2:] == (6,)


def _found(teacher: Model, feed: Feed) -> Tensor:
    """Return the boxes on each image, on the CPU."""
    rows: list[Tensor] = []
    in_order = torch.split(torch.arange(len(feed)), eval_batch(feed.images.shape[2:]))
    for index, images in feed.batches(in_order):
        rows += shown(teacher(images.at(index)), least=LEAST_SCORE)
    return padded(rows)


def padded(rows: Sequence[Tensor]) -> Tensor:
    """Return boxes [n, 6] of each image as one tensor [N, most, 6], at least one an image."""
    most = max([1, *(len(found) for found in rows)])
    whole = torch.stack([F.pad(found, (0, 0, 0, most - len(found))) for found in rows])
    beyond = torch.tensor([len(found) for found in rows])[:, None] <= torch.arange(most)
    whole[..., 5] = torch.where(beyond, float(PADDING), whole[..., 5])
    return whole
