"""Cache of teacher outputs per (sample, augmented view), in memory and on disk.

Student and teacher see the same view, mixed or not, so a stored row is exact for any trial, seed
and number of epochs. A view is computed whole, in order and in batches of one size: its rows depend
neither on the trial that needs them first nor on whether they come from memory or disk. Trials use
views in the order of their epochs, so the first views, which short trainings share, are cached
first.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from safetensors import SafetensorError
from torch import Tensor

from kdsearch.data.base import Augment
from kdsearch.data.feed import Feed
from kdsearch.data.views import augmented, counter_hash, partners
from kdsearch.models.features import Outputs
from kdsearch.models.model import Model, eval_batch
from kdsearch.training.teacher_cache.boxes import boxes_on
from kdsearch.training.teacher_cache.disk import Disk, ViewFiles
from kdsearch.training.teacher_cache.key import key_of
from kdsearch.training.teacher_cache.parts import (
    ALWAYS,
    BOXES,
    GROUPS,
    LARGE,
    Parts,
    View,
    join,
    passes_for,
    size_of,
    split,
)

MAX_BYTES = 2 * 1024**3
_CHECKED = 3
# Relative to the largest value: batches of 3 and of 256 may differ in the last bits. On an AVX2
# CPU a ResNet-56 agrees (in batches of 2 it is off by 1e-7); a GPU may multiply in TF32.
_TOLERANCE = {"cpu": 1e-4, "cuda": 1e-2}
_log = logging.getLogger(__name__)


class TeacherOutputs:
    """Outputs of a teacher on the N images of a feed under numbered views.

    Views are written to `disk` while it has room and read from there: memory-mapped on the CPU,
    copied to a GPU up to `max_bytes`. Views that are not on disk are kept in memory up to
    `max_bytes`. For a view that does not fit, the oldest views of other augmentations are dropped
    if that suffices; else the teacher is evaluated live. Stages, attention and gradients are stored
    when a trial needs them, and use at most half of either budget. Boxes are found once, see
    `boxes`; of a recipe that reads nothing else the teacher sees no view.
    """

    def __init__(
        self,
        teacher: Model,
        feed: Feed,
        *,
        view_seed: int,
        max_bytes: int = MAX_BYTES,
        disk: Disk | None = None,
    ) -> None:
        self._teacher = teacher
        self._feed = feed
        self._view_seed = view_seed
        self._max_bytes = max_bytes
        self._device = feed.device
        self._files: ViewFiles | None = None
        if disk is not None:
            key = key_of(teacher, feed, view_seed=view_seed, data_key=disk.data_key)
            self._files = ViewFiles(disk, key)
        self._views: dict[View, Parts] = {}
        self._held: dict[View, int] = {}  # bytes in memory; memory-mapped files count 0
        self._not_on_disk: set[tuple[View, frozenset[str]]] = set()
        self._row_bytes: dict[str, int] = {}
        self._boxes: Tensor | None = None
        self._lock = threading.Lock()
        self._seconds = 0.0

    @property
    def seconds(self) -> float:
        """Seconds of teacher evaluation; on a GPU, live evaluations count until they are queued."""
        return self._seconds

    @torch.no_grad()
    def live(self, images: Tensor, *, need: frozenset[str]) -> Outputs:
        """Return the teacher's outputs on images, uint8 [B, C, H, W]."""
        with self._timed():
            return self._teacher.features(images, need=ALWAYS | (need & LARGE))

    @torch.no_grad()
    def rows(
        self, index: Tensor, host: Tensor, view: int, *, need: frozenset[str], augment: Augment
    ) -> Outputs | None:
        """Return the stored outputs of the samples `index` [B] under `view`, None if not stored.

        host: the same index in CPU memory. Logits and embedding are always included, other parts
        where needed. Rows are empty where boxes alone are needed, or all that the teacher gives.
        """
        given = need if self._teacher.teaches is None else self._teacher.teaches & need
        if need and given <= BOXES:
            empty = torch.zeros(len(index), 0, device=index.device)
            return Outputs(empty[:, None], empty, index=index)
        wanted = ALWAYS | (need & LARGE)
        shown = View(augment, view)
        if self._missing(shown, wanted):
            with self._lock:
                self._add(shown, wanted)
        stored = self._views.get(shown, {})
        if not wanted <= stored.keys():
            return None
        rows = {name: tuple(_rows(part, index, host) for part in stored[name]) for name in wanted}
        return join(rows, index)

    @torch.no_grad()
    def boxes(self) -> Tensor:
        """Return the teacher's boxes on the plain images, [N, n, 6], on the device."""
        with self._lock, self._timed():
            if self._boxes is None:
                self._boxes = boxes_on(self._teacher, self._feed, self._files)
            return self._boxes

    def _missing(self, view: View, wanted: frozenset[str]) -> frozenset[str]:
        return wanted - self._views.get(view, {}).keys()

    def _add(self, view: View, wanted: frozenset[str]) -> None:
        """Load the wanted parts of a view from disk, else compute them if memory has room."""
        if self._files is not None and (view, wanted) not in self._not_on_disk:
            mapped = self._on_disk(self._files, view, self._missing(view, wanted))
            size = 0 if self._device.type == "cpu" else size_of(mapped)
            if size and self._has_room(size, frozenset(mapped), view.augment):
                near = {n: tuple(t.to(self._device) for t in part) for n, part in mapped.items()}
                self._keep(view, near, size)
            else:
                self._keep(view, mapped, 0)
            if self._missing(view, wanted):
                self._not_on_disk.add((view, wanted))
        missing = self._missing(view, wanted)
        size = self._view_bytes(missing)
        if missing and self._has_room(size, missing, view.augment):
            self._keep(view, self._whole_view(view, missing, self._device), size)

    def _keep(self, view: View, parts: Parts, held: int) -> None:
        """Add parts to a view; `held`: their bytes in memory, 0 for memory-mapped files."""
        if held and self._device.type == "cuda":  # trials on other streams may read it next
            torch.cuda.current_stream(self._device).synchronize()
        if held:
            self._held[view] = self._held.get(view, 0) + held
        self._views[view] = self._views.get(view, {}) | parts

    def _has_room(self, size: int, parts: frozenset[str], augment: Augment) -> bool:
        """Return True if parts fit into memory, dropping views of other augmentations if needed."""
        limit = (self._max_bytes // 2 if parts & LARGE else self._max_bytes) - size
        others = [view for view in self._held if view.augment != augment]
        if sum(self._held.values()) - sum(self._held[view] for view in others) > limit:
            return False
        while sum(self._held.values()) > limit:
            oldest = others.pop(0)
            del self._held[oldest], self._views[oldest]
        return True

    def _on_disk(self, files: ViewFiles, view: View, parts: frozenset[str]) -> Parts:
        """Return those parts from files; missing ones are written first if they fit."""
        found: Parts = {}
        try:
            with files.making(view):
                found = self._read(files, view, parts)
                found |= self._written(files, view, parts - found.keys())
        except (OSError, SafetensorError) as error:
            _log.warning("the teacher's outputs are no longer written to disk: %s", error)
            self._files = None
        return found

    def _written(self, files: ViewFiles, view: View, parts: frozenset[str]) -> Parts:
        """Compute those parts, write them and return them from files; nothing without room."""
        size = self._view_bytes(parts)
        if not parts or size > self._max_bytes or not files.make_room(size, parts):
            return {}
        whole = self._whole_view(view, parts, torch.device("cpu"))
        for group, names in GROUPS.items():
            if names <= parts:
                files.save(view, group, {name: whole[name] for name in names})
        return self._read(files, view, parts)

    def _read(self, files: ViewFiles, view: View, parts: frozenset[str]) -> Parts:
        found: Parts = {}
        for group, names in GROUPS.items():
            if names <= parts:
                found |= files.load(view, group, is_valid=partial(self._is_valid, view)) or {}
        return found

    def _is_valid(self, view: View, parts: Parts) -> bool:
        """Return True if stored parts match the teacher's live outputs on a few samples."""
        samples = torch.arange(_CHECKED)
        index = counter_hash(samples, self._view_seed, view.number, "check") % len(self._feed)
        with self._timed():
            ((index, fresh),) = self._answers([index], view, frozenset(parts))
            return all(
                len(parts[name]) == len(live)
                and all(self._matches(*pair, index) for pair in zip(parts[name], live, strict=True))
                for name, live in fresh.items()
            )

    def _matches(self, stored: Tensor, fresh: Tensor, index: Tensor) -> bool:
        if stored.shape != (len(self._feed), *fresh.shape[1:]) or stored.dtype != fresh.dtype:
            return False
        limit = _TOLERANCE[self._device.type] * float(fresh.abs().max())
        return torch.allclose(_rows(stored, index, index.cpu()), fresh, rtol=0, atol=limit)

    def _view_bytes(self, parts: frozenset[str]) -> int:
        if not parts <= self._row_bytes.keys():
            image = self._feed.images.at(slice(1)).to(self._device)
            one = split(self._teacher.features(image, need=parts), parts)
            self._row_bytes |= {name: size_of({name: part}) for name, part in one.items()}
        return len(self._feed) * sum(self._row_bytes[name] for name in parts)

    def _whole_view(self, view: View, parts: frozenset[str], device: torch.device) -> Parts:
        """Return the teacher's outputs on every sample, gathered on `device`."""
        count = len(self._feed)
        whole: Parts = {}
        with self._timed():
            size = eval_batch(self._feed.images.shape[2:])
            in_order = torch.split(torch.arange(count), size)
            answers = self._answers(in_order, view, parts)
            for start, (index, batch) in zip(range(0, count, size), answers, strict=True):
                if not whole:
                    whole = {n: tuple(_like(p, count, device) for p in batch[n]) for n in batch}
                for name, part in batch.items():
                    for rows, piece in zip(whole[name], part, strict=True):
                        rows[start : start + len(index)] = piece
        return whole

    def _answers(
        self, indices: Sequence[Tensor], view: View, parts: frozenset[str]
    ) -> Iterator[tuple[Tensor, Parts]]:
        """Yield each index, on the device, and the teacher's outputs on its samples."""
        (augment, number), seed = view, self._view_seed
        also = None
        if each := augment.partners:
            also = partial(partners, view=number, seed=seed, count=len(self._feed), each=each)
        for index, images in self._feed.batches(indices, also=also):
            shown = augmented(images, index, number, seed=seed, augment=augment)
            found: Parts = {}
            for need in passes_for(parts):
                found |= split(self._teacher.features(shown, need=need), need)
            yield index, found

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds += time.perf_counter() - started


def _like(part: Tensor, count: int, device: torch.device) -> Tensor:
    return torch.empty((count, *part.shape[1:]), dtype=part.dtype, device=device)


def _rows(part: Tensor, index: Tensor, host: Tensor) -> Tensor:
    """Return rows on the index's device; a GPU gets rows in CPU memory through pinned memory,
    which torch keeps until they have arrived."""
    if part.device != index.device:
        return part.index_select(0, host).pin_memory().to(index.device, non_blocking=True)
    if part.is_cuda:  # it may be dropped before this stream reads it
        part.record_stream(torch.cuda.current_stream(part.device))
    return part.index_select(0, index)
