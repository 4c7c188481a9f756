"""Images a second of crop, flip and normalise at 32 px, beside DataLoaders with two workers.

Ours runs on one thread of the training process; the peers have two worker processes, which keep
running between epochs, and hold the same decoded images in memory: one as arrays that go through
PIL and torchvision's transforms, the other as uint8 tensors that go through torchvision's v2. By
the wall clock, as several processes work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import v2

from benchmarks import bars, trials
from benchmarks.paired import alternate, quartiles
from kdsearch.data.base import Augment, ImageSet
from kdsearch.data.views import augmented, to_input

PIL_BAR, V2_BAR = 10.0, 3.0
WORKERS = 2
_COUNT = 100 * trials.BATCH
_AUGMENT = Augment(pad=4, flip=True)

Pair: TypeAlias = tuple[Tensor, Tensor]
Epoch: TypeAlias = Callable[[], Iterator[Pair]]


class Pictures(Dataset[tuple[Tensor, int]]):
    """Images as torchvision's sets hold them, [N, S, S, C] arrays, opened by PIL one by one."""

    def __init__(self, images: ImageSet) -> None:
        self._arrays = images.at(slice(None)).permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = images.labels.tolist()
        self._transform = transforms.Compose(
            [
                transforms.RandomCrop(trials.SIZE, padding=_AUGMENT.pad),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(trials.MEAN, trials.STD),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self._transform(Image.fromarray(self._arrays[place])), self._labels[place]


class Tensors(Dataset[tuple[Tensor, int]]):
    """Images as uint8 tensors [N, C, S, S], through torchvision's v2 one by one."""

    def __init__(
        self,
        images: ImageSet,
        *,
        mean: tuple[float, ...] = trials.MEAN,
        std: tuple[float, ...] = trials.STD,
    ) -> None:
        self._images = images.at(slice(None))
        self._labels = images.labels.tolist()
        self._transform = v2.Compose(
            [
                v2.RandomCrop(trials.SIZE, padding=_AUGMENT.pad),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return self._transform(self._images[place]), self._labels[place]


def ours(images: ImageSet) -> Epoch:
    """Return an epoch of views, as the trainer and the model make them."""

    def run() -> Iterator[Pair]:
        for index in torch.split(torch.randperm(len(images)), trials.BATCH):
            view = augmented(images, index, 1, seed=0, augment=_AUGMENT)
            batch = to_input(
                view, mean=trials.MEAN, std=trials.STD, resolution=trials.SIZE, channels=3
            )
            yield batch, images.labels[index]

    return run


def theirs(dataset: Dataset[tuple[Tensor, int]], *, workers: int = WORKERS) -> Epoch:
    """Return an epoch of a DataLoader."""
    loader = DataLoader(
        dataset,
        batch_size=trials.BATCH,
        shuffle=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    return lambda: iter(loader)


def seen(epoch: Epoch) -> int:
    """Return the number of images of an epoch, after taking them all."""
    return sum(len(images) for images, _ in epoch())


def rows() -> bars.Rows:
    """Return a row a peer."""
    images = trials.image_set(_COUNT)
    epochs = [ours(images), theirs(Pictures(images)), theirs(Tensors(images))]
    calls = [lambda epoch=epoch: seen(epoch) for epoch in epochs]
    times = alternate(calls, seconds=0, blocks=9, warm_up=1).wall
    found = []
    for place, (case, bar) in enumerate(
        ((f"{WORKERS} workers, PIL", PIL_BAR), (f"{WORKERS} workers, v2 on tensors", V2_BAR)), 1
    ):
        row = bars.Row(
            case=f"over DataLoader, {case}",
            measured=quartiles(times[:, place] / times[:, 0]),
            unit="x",
            bar=bar,
            is_floor=True,
            facts={
                "ours_images_s": round(_COUNT / quartiles(times[:, 0]).median),
                "theirs_images_s": round(_COUNT / quartiles(times[:, place]).median),
            },
        )
        found.append(row)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Return 1 when a peer is too near."""
    given = bars.parser("input_pipeline", __doc__).parse_args(argv)
    return bars.tell("input_pipeline", __doc__, rows, given.json)
