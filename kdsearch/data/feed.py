"""A set's images on the device that works on them: all at once where they fit, else read ahead.

Which of both decides nothing but speed: the batches are the same, bit for bit.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from math import prod
from typing import TypeAlias

import torch
from torch import Tensor

from kdsearch.data.base import ImageSet

# Of a GPU's free memory, for images that stay on it; networks and activations need the rest. On
# the CPU it is of all memory: a mapping above would be dropped and read again in every epoch.
SHARE = 0.5
_AHEAD = 3  # batches

Also: TypeAlias = Callable[[Tensor], Tensor]


class Feed:
    """A set of images, handed out by batches on `device`.

    max_bytes: how many may stay there; None means a share of the device's memory.
    """

    def __init__(
        self, images: ImageSet, device: torch.device, *, max_bytes: int | None = None
    ) -> None:
        self.images = images
        self.device = device
        limit = SHARE * _memory_bytes(device) if max_bytes is None else max_bytes
        self._resident = images.to(device) if prod(images.shape) <= limit else None
        self._labels = images.labels.to(device)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def is_resident(self) -> bool:
        """Whether all images stay on the device."""
        return self._resident is not None

    def batches(
        self, indices: Iterable[Tensor], *, also: Also | None = None
    ) -> Iterator[tuple[Tensor, ImageSet]]:
        """Yield each index, int64 [B], on the device, and a set there that has these samples.

        indices: on the CPU, or on the device where the set stays there. also: returns the further
        samples that a batch needs. The set numbers samples as the whole does, but may hold no
        others; it is valid until the next one is taken. Errors of reading are raised.
        """
        if self._resident is None:
            yield from self._read_ahead(indices, also)
        else:
            for index in indices:
                yield index.to(self.device, non_blocking=True), self._resident

    def _read_ahead(
        self, indices: Iterable[Tensor], also: Also | None
    ) -> Iterator[tuple[Tensor, ImageSet]]:
        rows = torch.full((len(self),), -1, device=self.device)  # a sample that is not there raises
        upcoming = iter(indices)
        pool = ThreadPoolExecutor(1, "feed")
        try:
            pending = deque(pool.submit(self._read, i, also) for i in islice(upcoming, _AHEAD))
            while pending:
                count, samples, pixels = pending.popleft().result()
                pending.extend(pool.submit(self._read, i, also) for i in islice(upcoming, 1))
                # Copied in the stream that waits for it: 128 images of 224 px are but 19 MB.
                here = samples.to(self.device, non_blocking=True)
                rows[here] = torch.arange(len(here), device=self.device)
                images = pixels.to(self.device, non_blocking=True)
                yield here[:count], ImageSet(images, self._labels, rows)
                rows[here] = -1
        finally:
            pool.shutdown(cancel_futures=True)

    def _read(self, index: Tensor, also: Also | None) -> tuple[int, Tensor, Tensor]:
        """Return the number of samples of the batch, it and what it needs, and their images."""
        samples = index if also is None else torch.cat([index, also(index)])
        pixels = self.images.at(samples)
        if self.device.type == "cuda":
            return len(index), samples.pin_memory(), pixels.pin_memory()
        return len(index), samples, pixels


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
