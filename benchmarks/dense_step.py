"""A step of a segmenter with a cached teacher, against plain PyTorch with a live one.

Plain: the same student, batch, kd loss and AdamW; torchvision's v2 transforms on each image and its
mask (affine, mirror), the teacher's forward pass in the step. CPU time of an epoch of each, on one
thread, masks of 192x256 pixels, alternately. Filling the teacher's cache is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from benchmarks import bars, trials
from benchmarks.paired import alternate
from kdsearch import tasks
from kdsearch.data.base import SEGMENTATION, VOID, Augment, ImageData, ImageSet
from kdsearch.deploy.pricing import build_student
from kdsearch.models.model import Model
from kdsearch.spec import Candidate, DistillSpec, StudentSpec, TrainSpec
from kdsearch.training.step import Session
from kdsearch.training.trainer import train
from kdsearch.trials.trial import TrialContext, build_distiller

BAR = 1.0
STUDENT = StudentSpec(
    family="resnet",
    knobs={"width": 0.5, "depth": 4, "head.kind": "fpn", "head.channels": 64},
)
_HEIGHT, _WIDTH, _BATCH, _BATCHES, _SCALE = 192, 256, 8, 2, 0.5
_RECIPE = TrainSpec(
    epochs=1, batch_size=_BATCH, optimizer="adamw", lr=1e-3, warmup=0.0, scale=_SCALE, clip=1.0
)
_ALPHA, _T = 0.5, 2.0
_KD = DistillSpec(method="kd", alpha=_ALPHA, knobs={"temperature": _T})


def rows() -> bars.Rows:
    """Return one row."""
    with TemporaryDirectory() as folder:
        return list(_rows(Path(folder)))


def _rows(folder: Path) -> Iterator[bars.Row]:
    data = _data()
    spec = tasks.of(data).auto_teacher
    assert spec is not None
    torch.manual_seed(0)
    teacher = build_student(spec, data).freeze()
    context = trials.context(data, teacher, folder)
    times = alternate([_ours(context), _plain(data, teacher)], seconds=0, blocks=9, warm_up=1)
    yield bars.Row(
        case="resnet w.5 d4, fpn 64",
        measured=times.ratio(0, 1),
        unit="x",
        bar=BAR,
        facts={
            "step_ms": round(times.ms(0) / _BATCHES, 1),
            "plain_step_ms": round(times.ms(1) / _BATCHES, 1),
            "by_wall": str(times.ratio(0, 1, clock="wall")),
        },
    )


def _data() -> ImageData:
    """Return images with masks of three classes, and some void."""

    def made(count: int, seed: int) -> ImageSet:
        images = trials.pictures(count, size=_WIDTH, seed=seed)[:, :, :_HEIGHT]
        masks = (images[:, 0] // 86).to(torch.uint8)
        return ImageSet(images, torch.where(images[:, 1] > 250, VOID, masks))

    few = made(2, seed=1)
    return ImageData(
        name="made",
        key="made-masks",
        classes=("a", "b", "c"),
        train=made(_BATCH * _BATCHES, seed=0),
        val=few,
        test=few,
        mean=trials.MEAN,
        std=trials.STD,
        augment=Augment(pad=0, flip=True),
        task=SEGMENTATION,
    )


def _ours(context: TrialContext) -> Callable[[], object]:
    torch.manual_seed(1)
    student = build_student(STUDENT, context.data)
    candidate = Candidate(student=STUDENT, distill=_KD, train=_RECIPE)
    session = Session(
        data=context.data,
        spec=_RECIPE,
        seed=0,
        view_seed=0,
        device=trials.CPU,
        teachers=context.outputs,
        train=context.train,
        val=context.val,
    )
    distiller = build_distiller(candidate, student, context)
    return lambda: train(student, distiller, session)


def _plain(data: ImageData, teacher: Model) -> Callable[[], None]:
    torch.manual_seed(1)
    student = build_student(STUDENT, data).network.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=_RECIPE.lr)
    view = v2.Compose(
        [
            v2.RandomAffine(0, translate=(0.1, 0.1), scale=(1 / (1 + _SCALE), 1 + _SCALE)),
            v2.RandomHorizontalFlip(),
            v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
            v2.Normalize(data.mean, data.std),
        ]
    )

    def batch(start: int) -> tuple[Tensor, Tensor]:
        index = torch.arange(start, start + _BATCH)
        pairs = zip(data.train.at(index), data.train.labels[index], strict=True)
        views = [view(tv_tensors.Image(image), tv_tensors.Mask(mask)) for image, mask in pairs]
        images, masks = zip(*views, strict=True)
        return torch.stack(images), torch.stack(masks).long()

    def epoch() -> None:
        for start in range(0, len(data.train), _BATCH):
            images, masks = batch(start)
            with torch.no_grad():
                theirs = teacher.network(images)
            ours = student(images)
            pixels = F.interpolate(ours, masks.shape[1:], mode="bilinear", align_corners=False)
            loss = F.cross_entropy(pixels, masks, ignore_index=VOID)
            theirs = F.interpolate(theirs, ours.shape[2:], mode="bilinear", align_corners=False)
            divergence = F.kl_div(
                F.log_softmax(ours / _T, dim=1), F.softmax(theirs / _T, dim=1), reduction="none"
            )
            loss = (1 - _ALPHA) * loss + _ALPHA * _T**2 * divergence.sum(dim=1).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
            optimizer.step()

    return epoch


def main(argv: Sequence[str] | None = None) -> int:
    """Return 1 when a step is above the bar."""
    given = bars.parser("dense_step", __doc__).parse_args(argv)
    return bars.tell("dense_step", __doc__, rows, given.json)
