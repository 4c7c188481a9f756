"""A task from outside the package: how bright an image is, measured by a metric of its own."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from kdsearch.data.base import Augment, Sample, Source, is_labelled
from kdsearch.data.views import ViewSeeds, mixed_with, own_share
from kdsearch.errors import DataError
from kdsearch.models import students
from kdsearch.models.features import Outputs
from kdsearch.spec import StudentSpec
from kdsearch.tasks import Facts, Meter, Metric, Task


class Brightness(Task):
    """One number an image, NaN where it is not known; the answer is [B, 1]."""

    name = "brightness"
    metric = Metric(
        key="closeness", label="closeness of brightness", is_percent=False, image_variance=0.01
    )
    output = "brightness"

    def network(self, spec: StudentSpec, *, channels: int, size: tuple[int, int]) -> nn.Module:
        """Return a student with one output."""
        return students.build(spec, in_channels=channels, num_classes=1, data_size=size)

    def target(
        self,
        labels: Tensor,
        index: Tensor,
        seeds: ViewSeeds,
        augment: Augment,
        size: tuple[int, int],
    ) -> Tensor:
        """Return the number [B] of a view: of a mixed one the mean, weighed by the pixels."""
        other = mixed_with(index, seeds)
        if other is None:
            return labels[index]
        share = own_share(index, seeds, augment, size)
        return share * labels[index] + (1 - share) * labels[other]

    def loss(self, outputs: Outputs, target: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """Return the mean of Huber's loss over what is labelled."""
        known = is_labelled(target)
        error = F.smooth_l1_loss(outputs.logits[:, 0], target.nan_to_num(), reduction="none")
        return (error * known).sum() / known.sum().clamp(min=1)

    def blend(self, weights: Tensor, answers: Tensor) -> Tensor:
        """Return the weighted mean."""
        return (weights[:, :, None] * answers).sum(dim=1)

    def meter(self, device: torch.device) -> Meter:
        """Return a meter of 1 / (1 + mean absolute error)."""
        return Closeness(device)

    def agreement(self, ours: Tensor, theirs: Tensor) -> float:
        """Return the share of numbers that differ by less than 0.001."""
        return float(((ours - theirs).abs() < 1e-3).float().mean())

    def facts(self) -> Facts:
        """Return what the card says."""
        return Facts(
            pipeline_tag="image-feature-extraction",
            output="float32 [batch, 1], the mean of the pixels from 0 to 1",
            limits=("It knows brightness alone.",),
        )


class Closeness(Meter):
    """1 / (1 + mean absolute error)."""

    def __init__(self, device: torch.device) -> None:
        self._sum = torch.zeros((), dtype=torch.float64, device=device)
        self._images = torch.zeros((), dtype=torch.int64, device=device)

    def reset(self) -> None:
        """Forget all images."""
        self._sum.zero_()
        self._images.zero_()

    def add(self, answer: Tensor, labels: Tensor) -> None:
        """Count a batch."""
        known = is_labelled(labels)
        error = (answer[:, 0].double() - labels.nan_to_num()).abs() * known
        self._sum.add_(error.sum())
        self._images.add_(known.sum())

    def value(self) -> float:
        """Return the closeness."""
        if not int(self._images):
            raise DataError("there are no images to evaluate on")
        return 1 / (1 + float(self._sum / self._images))


def read(count: int = 160, height: int = 12, width: int = 18) -> Source:
    """Return grey images of noise, wider than high, each with its own brightness."""
    generator = np.random.default_rng(0)
    levels = generator.uniform(0.1, 0.9, count)
    noise = generator.uniform(-0.1, 0.1, (count, height, width))
    pixels = np.rint(255 * (levels[:, None, None] + noise)).astype(np.uint8)
    samples = [
        Sample(name=f"{row}", label=float(image.mean() / 255), content=Image.fromarray(image))
        for row, image in enumerate(pixels)
    ]
    return Source(
        name="brightness",
        task=f"{__file__}:Brightness",
        classes=(),
        splits={"train": samples},
        content=[("pixels", pixels.tobytes())],
        channels=1,
        canvas=(height, width),
        held_out=0.2,
    )
