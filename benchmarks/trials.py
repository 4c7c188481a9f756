"""Images, students, teachers and epochs to be timed, all made on the spot.

An epoch is one call of the package's own `train` on a few batches of 128 images of 32 px: views,
forward, losses, backward, optimisers, the averaged weights; two images are validated.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch.data.base import Augment, ImageData, ImageSet
from kdsearch.data.feed import Feed
from kdsearch.deploy.device_lock import DeviceLock
from kdsearch.deploy.latency import LatencyCache
from kdsearch.deploy.pricing import build_student
from kdsearch.errors import SpecError
from kdsearch.models.cifar_resnet import CifarResNet
from kdsearch.models.features import Outputs, Tapped
from kdsearch.models.model import Model
from kdsearch.spec import Budget, Candidate, DistillSpec, StudentSpec, TrainSpec
from kdsearch.training.autotune import Executions
from kdsearch.training.step import Session, TeacherSource
from kdsearch.training.teacher_cache import Disk, TeacherOutputs
from kdsearch.training.trainer import Epoch, train
from kdsearch.trials.trial import TrialContext, build_distiller

BATCH, SIZE, CLASSES = 128, 32, 10
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
SMALL = StudentSpec(family="resnet", knobs={"width": 0.25, "depth": 3})
LARGE = StudentSpec(family="resnet", knobs={"width": 1.0, "depth": 9})
NAMES = {SMALL.knobs["depth"]: "resnet w.25 d3 (d8)", LARGE.knobs["depth"]: "resnet w1 d9 (d20)"}
CPU = torch.device("cpu")

Call: TypeAlias = Callable[[], list[Epoch]]


def pictures(count: int, *, size: int = SIZE, seed: int = 0) -> Tensor:
    """Return uint8 [N, 3, S, S] that compress about as photographs do: blobs and a little noise."""
    random = torch.Generator().manual_seed(seed)
    blobs = torch.rand(count, 3, size // 8, size // 8, generator=random)
    smooth = F.interpolate(blobs, (size, size), mode="bicubic", align_corners=False)
    noise = 0.03 * torch.randn(count, 3, size, size, generator=random)
    return ((smooth + noise).clamp(0, 1) * 255).byte()


def image_set(count: int, *, seed: int = 0) -> ImageSet:
    """Return pictures with labels."""
    return ImageSet(pictures(count, seed=seed), torch.arange(count) % CLASSES)


def image_data(batches: int) -> ImageData:
    """Return a data set whose epoch has that many batches."""
    few = image_set(2, seed=1)
    return ImageData(
        name="made",
        key=f"made-{batches}",
        classes=tuple("abcdefghij"),
        train=image_set(batches * BATCH),
        val=few,
        test=few,
        mean=MEAN,
        std=STD,
        augment=Augment(pad=4, flip=True),
    )


def teacher() -> Model:
    """Return a cifar_resnet56; it takes as long as a trained one."""
    torch.manual_seed(0)
    network = Tapped(CifarResNet(56, CLASSES), in_channels=3, resolution=SIZE)
    student = build_student(SMALL, image_data(1))
    return Model("cifar_resnet56", network, student.preprocess).freeze()


def context(
    data: ImageData,
    taught_by: Model,
    folder: Path,
    *,
    budget: Budget | None = None,
    device: torch.device = CPU,
) -> TrialContext:
    """Return what the trials of a study share; the teacher's outputs are kept below `folder`.

    On a CPU all steps run in float32, whatever is fastest there.
    """
    feed = Feed(data.train, device)
    disk = Disk(cache_dir=folder, data_key=data.key)
    return TrialContext(
        data=data,
        teachers=(taught_by,),
        outputs=(TeacherOutputs(taught_by, feed, view_seed=0, disk=disk),),
        budget=budget or Budget(),
        latencies=LatencyCache(folder),
        device_lock=DeviceLock(),
        seed=0,
        device=device,
        train=feed,
        val=Feed(data.val, device),
        executions=None if device.type == "cpu" else Executions(folder),
    )


def epoch(
    student: StudentSpec, method: str, on: TrialContext, *, source: TeacherSource | None = None
) -> Call:
    """Return an epoch of a student; it returns its record.

    source: who answers for the teacher; by default the bench's stored outputs.
    """
    recipe = TrainSpec(epochs=1, batch_size=BATCH, lr=1e-3, warmup=0.0)
    candidate = Candidate(student=student, distill=DistillSpec(method=method), train=recipe)
    torch.manual_seed(1)
    model = build_student(student, on.data)
    distiller = build_distiller(candidate, model, on)
    session = Session(
        data=on.data,
        spec=recipe,
        seed=0,
        view_seed=on.seed,
        device=on.device,
        teachers=on.outputs if source is None else (source,),
        train=on.train,
        val=on.val,
    )
    return lambda: train(model, distiller, session)


class Live:
    """A teacher that is asked anew in every step, in evaluation mode and without gradients."""

    def __init__(self, network: Model) -> None:
        self._network = network

    def rows(
        self, index: Tensor, host: Tensor, view: int, *, need: frozenset[str], augment: Augment
    ) -> None:
        """Return None: nothing is stored."""

    @torch.no_grad()
    def live(self, images: Tensor, *, need: frozenset[str]) -> Outputs:
        """Return what the network says of `images`."""
        return self._network.features(images, need=need)

    def boxes(self) -> Tensor:
        """Raise SpecError: the network is a classifier."""
        raise SpecError("a classifier finds no boxes")
