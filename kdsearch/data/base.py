"""Value types of data: samples and sources as a user has them, image sets as trainings read them.

Images are uint8 `[N, C, H, W]`, labels have one row an image. No I/O here, and no torch import.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from kdsearch.data.sizes import Decoding, Size
from kdsearch.errors import DataError, did_you_mean
from kdsearch.train_spec import MAX_SCALE, MIXES, POLICIES

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

UNLABELLED = -1
VOID = 255  # of a mask: a pixel without a class
Colour: TypeAlias = tuple[int, int, int]
CLASSIFICATION = "classification"  # the task of data that name none
SEGMENTATION = "segmentation"
DETECTION = "detection"
MOSAIC_OTHERS = 3  # images of a mosaic besides the sample's own
_CHUNK = 512  # images copied at a time, so that a set larger than the memory never sits in it


def no_label(dtype: torch.dtype) -> float:
    """Return the value that fills a label where there is none: NaN, -1 of integers, 255 of bytes.

    Bytes are the pixels of masks.
    """
    if dtype.itemsize == 1:
        return VOID
    return math.nan if dtype.is_floating_point else UNLABELLED


def is_labelled(labels: Tensor) -> Tensor:
    """Return which images have a label, bool [N]. labels: [N, ...]."""
    none = no_label(labels.dtype)
    known = ~labels.isnan() if labels.is_floating_point() else labels != none
    return known if known.ndim == 1 else known.flatten(1).any(dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image before decoding: a file, its encoded bytes, or an opened image.

    name: what a message calls it, unique within the source. label: its class, or -1 for none; of
    another task a number or an array, in one shape for all images, NaN or -1 for none; or a
    mask or boxes, which are placed as the image is.
    """

    name: str
    label: Label
    content: Path | bytes | Image


class Placed(ABC):
    """A label in the pixels of its image, before decoding: a mask or boxes."""

    @abstractmethod
    def decode(self, image: Path | bytes | Image, size: Size) -> NDArray[Any]:
        """Return the label on a canvas of a size (H, W), placed as its image is.

        Raises UnreadableError, or DataError where the labels of all images may be wrong.
        """


Label: TypeAlias = "int | float | NDArray[Any] | Placed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Images as the user has them.

    task: what their labels are for, a name of `kdsearch.tasks` or `FILE.py:Class`. classes: names
    of the classes, none where labels are no classes.
    splits: `train` and any of `val`, `test`, and `unlabeled`, whose labels are -1; each is
    iterated from its beginning every time.
    content: name and bytes (or file) of everything that decides pixels and labels; a file whose
    size, inode and times are as they were is not read again.
    channels: 1 or 3. canvas: (H, W) that images are cut to, centred, and scaled to; None: a square
    that fits them. is_padded: images are scaled to fit into the canvas, never cut; without
    a canvas, one of the shape of the median image, its sides multiples of 32. flip: whether a
    mirrored image still shows its class.
    held_out: share of train that becomes a split which the source lacks. left_out: names of what
    is there and not read, by the reason. notes: sentences on how the source was read. colours: red,
    green and blue of each class, 0 to 255, where the source states all of them.
    """

    name: str
    classes: tuple[str, ...]
    splits: Mapping[str, Iterable[Sample]]
    content: Sequence[tuple[str, Path | bytes]]
    channels: int = 3
    flip: bool = True
    held_out: float = 0.1
    canvas: Size | None = None
    is_padded: bool = False
    task: str = CLASSIFICATION
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    colours: tuple[Colour, ...] = ()

    def __post_init__(self) -> None:
        if len(self.classes) < 2 and self.task == CLASSIFICATION:
            raise DataError(
                f"{self.name}: classification needs at least two classes, "
                f"found {', '.join(map(repr, self.classes)) or 'none'}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """What a training view may do: crop after zero padding by `pad` pixels, mirror sideways.

    area: None, or the least share of an image in a random resized crop (Szegedy et al., CVPR 2015,
    arXiv:1409.4842), in place of the padding. policy: operations on top, see data/policies.py.
    mix: whether another image is mixed in. scale: images are enlarged or reduced by up to
    1 + scale. mosaic: share of the views that show four images, see data/mosaic.py.
    """

    pad: int
    flip: bool
    policy: str = "plain"
    mix: str = "none"
    area: float | None = None
    scale: float = 0.0
    mosaic: float = 0.0

    @property
    def partners(self) -> int:
        """Return how many other samples a view may show."""
        return MOSAIC_OTHERS if self.mosaic else int(self.mix != "none")

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise DataError(f"augment.pad: {self.pad} is not a number of pixels")
        if self.area is not None and not 0 < self.area <= 1:
            raise DataError(f"augment.area: {self.area} is not a share in (0, 1]")
        if not 0 <= self.scale <= MAX_SCALE:
            raise DataError(f"augment.scale: {self.scale} is not a number from 0 to {MAX_SCALE}")
        if not 0 <= self.mosaic <= 1:
            raise DataError(f"augment.mosaic: {self.mosaic} is not a share from 0 to 1")
        if self.mosaic and (self.mix != "none" or self.area is not None):
            raise DataError("augment.mosaic: it excludes mix and resized crops")
        _check_choice("policy", self.policy, POLICIES)
        _check_choice("mix", self.mix, MIXES)


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        hint = did_you_mean(value, known)
        raise DataError(f"augment.{name}: unknown {value!r}{hint}; known: {', '.join(known)}")


@dataclass(frozen=True, slots=True)
class ImageSet:
    """N decoded images among those of a store, and their labels `[N, ...]`, as the task has them.

    images: uint8 `[M, C, H, W]`, mapped from disk as a rule; read them through `at`.
    rows: int64 `[N]`, where in `images` each sample lies; None: in order, and N is M.
    """

    images: Tensor
    labels: Tensor
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return (N, C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return len(self), channels, height, width

    def at(self, index: Tensor | slice) -> Tensor:
        """Return the samples at `index` [B]: uint8 `[B, C, H, W]`, for a slice perhaps a view."""
        return _pick(self.images, index if self.rows is None else _pick(self.rows, index))

    def some(self, most: int) -> Tensor:
        """Return at most so many samples, evenly spaced: uint8 `[B, C, H, W]`."""
        import torch

        count = min(most, len(self))
        return self.at(torch.arange(count) * len(self) // count)

    def take(self, index: Tensor | slice) -> ImageSet:
        """Return the samples at `index`, in its order, without copying their images."""
        labels = _pick(self.labels, index)
        if self.rows is not None:
            return ImageSet(self.images, labels, _pick(self.rows, index))
        if isinstance(index, slice):
            return ImageSet(self.images[index], labels)
        return ImageSet(self.images, labels, index)

    def to(self, device: torch.device) -> ImageSet:
        """Return the set itself where it is on the device, else a copy there, in order."""
        import torch

        if self.images.device == device:
            return self
        images = torch.empty(self.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(self), _CHUNK):
            images[start : start + _CHUNK] = self.at(slice(start, start + _CHUNK))
        return ImageSet(images, self.labels.to(device))


def _pick(values: Tensor, index: Tensor | slice) -> Tensor:
    """Return values[index]; index_select is serial, where `[]` waits for threads: up to 12 ms."""
    return values[index] if isinstance(index, slice) else values.index_select(0, index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Raw:
    """The images of a store as the user has them.

    ranges: the rows that each split of the source became, without `skipped`, by sample name.
    """

    source: Source
    ranges: Mapping[str, slice]
    skipped: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageData:
    """A data set, ready to train on; task: see Source.

    key: equal only for the same images in the same splits and order, with the same augmentation.
    train: the labelled images, then the unlabelled ones; the other splits have no unlabelled.
    mean, std: per channel, of labelled / 255; std is at least 1/255, for channels that never vary.
    skipped: names of the images that could not be read. decoding: how the others were.
    raw: the images before decoding, None where they were made in memory.
    inventory: sentences on what was found and what was left out. metric: key of the task's metric,
    empty for its first. colours: of the classes, see Source.
    """

    name: str
    key: str
    classes: tuple[str, ...]
    train: ImageSet
    val: ImageSet
    test: ImageSet
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment
    skipped: tuple[str, ...] = ()
    task: str = CLASSIFICATION
    decoding: Decoding = field(default_factory=Decoding)
    raw: Raw | None = None
    inventory: tuple[str, ...] = ()
    metric: str = ""
    colours: tuple[Colour, ...] = ()

    @property
    def labelled(self) -> ImageSet:
        """Return the images of train that have a label, without copying them."""
        return self.train.take(slice(int(is_labelled(self.train.labels).sum())))

    @property
    def channels(self) -> int:
        """Return C, 1 or 3."""
        return self.train.shape[1]

    @property
    def size(self) -> Size:
        """Return (H, W) of the images in pixels; classification data are square."""
        return self.train.shape[2:]

    @property
    def num_classes(self) -> int:
        """Return K; labels are 0 to K - 1."""
        return len(self.classes)
