"""A teacher's logits and embeddings, once per (sample, view) and kept for every later trial.

Student and teacher see the same view, so a stored row is exact for any trial, seed and number of
epochs. A view is computed whole, in order and in batches of one size: its rows do not depend on
which trial asked first. Stages come from the live teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kdsearch.data.base import Augment
from kdsearch.data.views import augmented
from kdsearch.model import EVAL_BATCH, Model
from kdsearch.taps import Outputs

MAX_BYTES = 2 * 1024**3


class TeacherOutputs:
    """What the teacher says of the training images [N, C, S, S] under numbered views.

    Beyond `max_bytes` of them, further views are answered by the live teacher.
    """

    def __init__(
        self,
        teacher: Model,
        images: Tensor,
        *,
        view_seed: int,
        augment: Augment,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._teacher = teacher
        self._images = images
        self._view_seed = view_seed
        self._augment = augment
        self._max_bytes = max_bytes
        self._views: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def __call__(
        self, images: Tensor, index: Tensor, view: int, *, need: frozenset[str]
    ) -> Outputs:
        """Return the outputs for `images` = the samples `index` [B] under `view`.

        Unless stages are needed, there are none in them.
        """
        if "stages" in need:
            return self._teacher.features(images)
        if view not in self._views and self._has_room(images):
            self._views[view] = self._whole_view(view)
        if view not in self._views:
            return self._teacher.features(images)
        logits, embedding = self._views[view]
        return Outputs(logits[index], embedding[index])

    def _has_room(self, images: Tensor) -> bool:
        one = self._teacher.features(images[:1])
        bytes_per_view = len(self._images) * (one.logits.nbytes + one.embedding.nbytes)
        return (len(self._views) + 1) * bytes_per_view <= self._max_bytes

    def _whole_view(self, view: int) -> tuple[Tensor, Tensor]:
        samples = torch.arange(len(self._images), device=self._images.device)
        parts = [
            self._teacher.features(
                augmented(self._images, index, view, seed=self._view_seed, augment=self._augment)
            )
            for index in torch.split(samples, EVAL_BATCH)
        ]
        return (
            torch.cat([part.logits for part in parts]),
            torch.cat([part.embedding for part in parts]),
        )
