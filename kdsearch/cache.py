"""A teacher's outputs, once per (augmentation, sample, view) and kept for every later trial.

Student and teacher see the same view, mixed or not, so a stored row is exact for any trial, seed
and number of epochs. A view is computed whole, in order and in batches of one size: its rows do
not depend on which trial asked first.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from kdsearch.data.base import Augment
from kdsearch.data.views import augmented
from kdsearch.model import EVAL_BATCH, Model
from kdsearch.taps import Outputs

MAX_BYTES = 2 * 1024**3
_ALWAYS = frozenset({"logits", "embedding"})
_LARGE = frozenset({"stages", "attention", "gradient"})
_Parts: TypeAlias = dict[str, tuple[Tensor, ...]]


class TeacherOutputs:
    """What the teacher says of the training images [N, C, S, S] under numbered views.

    Logits and embeddings are stored up to `max_bytes`; stages, attention and gradients, for those
    who need them, while they leave half of that free. When a view does not fit, the oldest views
    of other augmentations make room if that is enough, else the live teacher answers.
    """

    def __init__(
        self, teacher: Model, images: Tensor, *, view_seed: int, max_bytes: int = MAX_BYTES
    ) -> None:
        self._teacher = teacher
        self._images = images
        self._view_seed = view_seed
        self._max_bytes = max_bytes
        self._views: dict[tuple[Augment, int], _Parts] = {}
        self._row_bytes: dict[str, int] = {}

    @torch.no_grad()
    def __call__(
        self, images: Tensor, index: Tensor, view: int, *, need: frozenset[str], augment: Augment
    ) -> Outputs:
        """Return the outputs for `images` = the samples `index` [B] under `view`.

        Logits and embedding are always among them; other parts need not be, unless needed.
        """
        wanted = _ALWAYS | (need & _LARGE)
        stored = self._views.get((augment, view), {})
        missing = wanted - stored.keys()
        if missing and self._make_room(missing, augment):
            found = self._whole_view(view, missing, augment)
            stored = self._views.setdefault((augment, view), {})
            stored.update(found)
        elif missing:
            return replace(self._teacher.features(images, need=wanted), index=index)
        rows = {name: tuple(part[index] for part in stored[name]) for name in wanted}
        return _join(rows, index)

    def _make_room(self, parts: frozenset[str], augment: Augment) -> bool:
        """Say whether a view's parts fit, after dropping others' views where that is enough."""
        limit = self._max_bytes // 2 if parts & _LARGE else self._max_bytes
        limit -= self._view_bytes(parts)
        others = [key for key in self._views if key[0] != augment]
        sizes = {key: self._view_bytes(frozenset(self._views[key])) for key in self._views}
        if sum(size for key, size in sizes.items() if key not in others) > limit:
            return False
        while sum(sizes.values()) > limit:
            oldest = others.pop(0)
            del self._views[oldest], sizes[oldest]
        return True

    def _view_bytes(self, parts: frozenset[str]) -> int:
        if not parts <= self._row_bytes.keys():
            one = _split(self._teacher.features(self._images[:1], need=parts), parts)
            sizes = {name: sum(part.nbytes for part in found) for name, found in one.items()}
            self._row_bytes.update(sizes)
        return len(self._images) * sum(self._row_bytes[name] for name in parts)

    def _whole_view(self, view: int, parts: frozenset[str], augment: Augment) -> _Parts:
        samples = torch.arange(len(self._images), device=self._images.device)
        batches = [
            _split(
                self._teacher.features(
                    augmented(self._images, index, view, seed=self._view_seed, augment=augment),
                    need=parts,
                ),
                parts,
            )
            for index in torch.split(samples, EVAL_BATCH)
        ]
        return {
            name: tuple(
                torch.cat(pieces) for pieces in zip(*(b[name] for b in batches), strict=True)
            )
            for name in parts
        }


def _split(outputs: Outputs, parts: frozenset[str]) -> _Parts:
    """Return the tensors of each part; a part may have none."""
    found = {name: getattr(outputs, name) for name in parts}
    return {
        name: (value,) if isinstance(value, Tensor) else tuple(value or ())
        for name, value in found.items()
    }


def _join(parts: _Parts, index: Tensor) -> Outputs:
    """Return the outputs that were split."""
    return Outputs(
        logits=parts["logits"][0],
        embedding=parts["embedding"][0],
        stages=parts.get("stages", ()),
        attention=parts.get("attention", ()),
        gradient=parts["gradient"][0] if "gradient" in parts else None,
        index=index,
    )
