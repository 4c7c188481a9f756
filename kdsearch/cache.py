"""A teacher's logits, computed once per (sample, view) and kept for every later trial.

Student and teacher see the same view, so a stored row is exact for any trial, seed and number of
epochs. A view is computed whole, in order and in batches of one size: its rows do not depend on
which trial asked first. What a trial needs beyond logits comes from the live teacher.
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

    Beyond `max_bytes` of stored logits, further views are answered by the live teacher.
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
        self._views: dict[int, Tensor] = {}

    @torch.no_grad()
    def __call__(
        self, images: Tensor, index: Tensor, view: int, *, need: frozenset[str]
    ) -> Outputs:
        """Return the outputs for `images` = the samples `index` [B] under `view`.

        When only logits are needed, embedding and stages are empty.
        """
        if need - {"logits"}:
            return self._teacher.features(images)
        if view not in self._views and self._has_room(images):
            self._views[view] = self._all_logits(view)
        logits = self._views[view][index] if view in self._views else self._teacher(images)
        return Outputs(logits, logits[:, :0])

    def _has_room(self, images: Tensor) -> bool:
        row = next(iter(self._views.values()))[0] if self._views else self._teacher(images[:1])[0]
        return (len(self._views) + 1) * len(self._images) * row.nbytes <= self._max_bytes

    def _all_logits(self, view: int) -> Tensor:
        samples = torch.arange(len(self._images), device=self._images.device)
        return torch.cat(
            [
                self._teacher(
                    augmented(
                        self._images, index, view, seed=self._view_seed, augment=self._augment
                    )
                )
                for index in torch.split(samples, EVAL_BATCH)
            ]
        )
