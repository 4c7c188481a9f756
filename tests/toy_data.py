"""Images that a few steps of training tell apart: the class says which corner is bright."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from kdsearch.data.base import Augment, ImageData, ImageSet
from kdsearch.methods.base import Setting
from kdsearch.models.features import Outputs, Tapped
from kdsearch.models.model import Model, Preprocess
from kdsearch.spec import DistillSpec
from kdsearch.tasks.classification import Classification
from kdsearch.training.distiller import Distiller, needed_features
from kdsearch.training.step import TeacherSource
from kdsearch.trials.trial import side_of

SIZE = 8
CPU = torch.device("cpu")


def images(count: int, *, channels: int = 1, size: int = SIZE, seed: int = 0) -> ImageSet:
    """Return noise with one of three corners bright."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    pixels = torch.randint(0, 100, (count, channels, size, size), generator=generator)
    half = size // 2
    for row, (y, x) in enumerate(((0, 0), (0, half), (half, 0))):
        pixels[labels == row, :, y : y + half, x : x + half] += 155
    return ImageSet(pixels.to(torch.uint8), labels)


def toy_data(*, channels: int = 1, size: int = SIZE, pad: int = 1) -> ImageData:
    return ImageData(
        name="toy",
        key=f"toy-{channels}-{size}-{pad}",
        classes=("a", "b", "c"),
        train=images(96, channels=channels, size=size),
        val=images(60, channels=channels, size=size, seed=1),
        test=images(60, channels=channels, size=size, seed=2),
        mean=(0.35,) * channels,
        std=(0.3,) * channels,
        augment=Augment(pad=pad, flip=False),
    )


def tiny_network(channels: int = 1, classes: int = 3, width: int = 8) -> nn.Sequential:
    """Return stages of 8, 4 and 2 pixels, with everything that a state may hold."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * width, classes),
    )


def tiny_model(seed: int = 0, *, width: int = 8, size: int = SIZE) -> Model:
    torch.manual_seed(seed)
    network = Tapped(tiny_network(width=width), in_channels=1, resolution=size)
    preprocess = Preprocess(mean=(0.35,), std=(0.3,), resolution=size, channels=1)
    return Model("tiny", network, preprocess)


def distiller_for(spec: DistillSpec, student: Model, teacher: Model | None = None) -> Distiller:
    some = images(4).images
    return Distiller(
        spec,
        task=Classification(),
        student=side_of(student, some),
        teachers=[] if teacher is None else [side_of(teacher, some, needed_features(spec))],
        setting=Setting(samples=96),
    )


def rows_of(
    source: TeacherSource,
    images: Tensor,
    index: Tensor,
    view: int,
    *,
    need: frozenset[str],
    augment: Augment,
) -> Outputs:
    """Return what a source says of a batch, as a step asks it: its rows, else live."""
    rows = source.rows(index, index.cpu(), view, need=need, augment=augment)
    return replace(source.live(images, need=need), index=index) if rows is None else rows
