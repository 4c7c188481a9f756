"""Set up what the trials of a study share: images, teacher, its outputs, the latency cache."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from kdsearch import data as datasets
from kdsearch.cache import TeacherOutputs
from kdsearch.cost import count
from kdsearch.data.base import ImageData
from kdsearch.errors import CostError, SpecError
from kdsearch.latency import LatencyCache
from kdsearch.model import Model
from kdsearch.request import Request
from kdsearch.spec import TrialRecord
from kdsearch.summary import TeacherEntry
from kdsearch.teacher import TeacherSpec, load_teacher
from kdsearch.trainer import Epoch, accuracy
from kdsearch.trial import Bench, latency_of

CACHE = ".cache"


class Watch(Protocol):
    """Who is told how a study gets on."""

    def note(self, text: str) -> None:
        """Tell one line."""

    def teacher_epoch(self, epoch: Epoch, epochs: int) -> None:
        """Tell that the teacher's training has got so far."""

    def search(self, n_done: int, n_trials: int, *, axis: str) -> None:
        """Tell that the search begins, how many trials are done already, and the cost it trades."""

    def trial_epoch(self, number: int, epoch: Epoch, epochs: int) -> None:
        """Tell that a trial's training has got so far."""

    def trial(self, record: TrialRecord, best: TrialRecord | None) -> None:
        """Tell how a trial ended, and the most accurate one so far."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A bench, and what was found out about its teacher."""

    bench: Bench
    teacher: TeacherEntry
    seconds: float


def load_data(request: Request, out: Path) -> tuple[ImageData, Request]:
    """Return the images, and the request with their digest and that of the teacher's weights."""
    data = datasets.load(
        request.data,
        cache_dir=out / CACHE,
        size=request.image_size,
        seed=request.seed,
        subset=request.subset,
        flip=request.flip,
    )
    weights = request.teacher_weights
    key = None
    if weights is not None:
        if not Path(weights).is_file():
            raise SpecError(f"--teacher-weights: there is no file {weights!r}")
        key = hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:16]
    return data, replace(request, data_key=data.key, weights_key=key)


def teacher_spec(request: Request) -> TeacherSpec:
    """Return the part of a request that is about the teacher, checked."""
    return TeacherSpec(
        name=request.teacher, weights=request.teacher_weights, epochs=request.teacher_epochs
    )


def prepare(
    request: Request,
    data: ImageData,
    *,
    out: Path,
    device: torch.device,
    watch: Watch,
) -> Prepared:
    """Load or train the teacher, measure it on validation, and lay out what trials share."""
    started = time.perf_counter()
    teacher = load_teacher(
        teacher_spec(request),
        data,
        cache_dir=out / CACHE,
        seed=request.seed,
        device=device,
        on_epoch=watch.teacher_epoch,
    )
    val = accuracy(teacher, data.val, device)
    seconds = time.perf_counter() - started
    latencies = LatencyCache(out / CACHE)
    images = data.train.images.to(device)
    bench = Bench(
        data=data,
        teacher=teacher,
        outputs=TeacherOutputs(teacher, images, view_seed=request.seed, augment=data.augment),
        budget=request.budget,
        latencies=latencies,
        seed=request.seed,
        device=device,
    )
    entry = _price_teacher(request, teacher, latencies, val, watch.note)
    return Prepared(bench=bench, teacher=entry, seconds=seconds)


def _price_teacher(
    request: Request,
    teacher: Model,
    latencies: LatencyCache,
    val: float,
    note: Callable[[str], None],
) -> TeacherEntry:
    """Return the teacher's entry; a cost that cannot be had is None, and a note says why."""
    params = sum(p.numel() for p in teacher.parameters())
    entry = TeacherEntry(
        name=request.teacher, val=val, test=None, flops=None, params=params, latency_ms=None
    )
    try:
        flops, _ = count(teacher.network, input_shape=teacher.preprocess.input_shape)
        entry = replace(entry, flops=flops)
        latency = latency_of(teacher, latencies)
        return replace(entry, latency_ms=latency.ms)
    except CostError as error:
        note(f"The teacher's cost is not fully known: {error}")
        return entry


def pick_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`. Raises SpecError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SpecError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise SpecError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N")
    available = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= available:
        raise SpecError(f"--device {name}: this machine has {available} CUDA devices")
    return device
