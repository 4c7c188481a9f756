"""Set up what the trials of a study share: images, teachers, their outputs, the latency cache."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch

from kdsearch import data as datasets
from kdsearch import tasks
from kdsearch.data.base import ImageData
from kdsearch.data.feed import Feed
from kdsearch.deploy.device_lock import DeviceLock
from kdsearch.deploy.flops import count
from kdsearch.deploy.latency import LatencyCache
from kdsearch.deploy.pricing import latency_of
from kdsearch.deploy.targets import require_target
from kdsearch.deploy.targets.base import Note
from kdsearch.errors import CostError, SpecError
from kdsearch.models.model import Model
from kdsearch.report.words import amount
from kdsearch.study.callbacks import Callback
from kdsearch.study.chance import constant_answer, teacher_at_chance
from kdsearch.study.config import StudyConfig
from kdsearch.study.summary import TeacherEntry
from kdsearch.tasks import Details
from kdsearch.teachers.evaluation import NEAREST, evaluate_teachers, knows_none
from kdsearch.teachers.load import load_teacher
from kdsearch.teachers.pretrained import about_scratch, weights_of
from kdsearch.teachers.spec import teacher_specs
from kdsearch.training.allocator import keep_freed_memory
from kdsearch.training.autotune import Executions
from kdsearch.training.teacher_cache import MAX_BYTES, Disk, TeacherOutputs
from kdsearch.training.trainer import OnEpoch
from kdsearch.trials.start import files_of
from kdsearch.trials.trial import TrialContext

CACHE = ".cache"


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What trials share, and the teacher's values; details: on validation."""

    context: TrialContext
    teacher: TeacherEntry
    details: Details
    seconds: float


def load_data(
    config: StudyConfig, out: Path, note: Note = lambda _: None
) -> tuple[ImageData, StudyConfig]:
    """Return the images, and the request with their digest and that of the teacher's weights.

    note: gets the lines of the inventory. Raises SpecError before images are read where the target
    cannot be used here, a teacher is not there, or `out` is below a file.
    """
    require_target(config)
    _require_folder(out)
    specs = teacher_specs(config)
    for spec in specs:
        spec.require()
    data = datasets.load(
        config.data,
        cache_dir=out / CACHE,
        size=config.image_size,
        fit=config.fit,
        max_megapixels=config.max_megapixels,
        seed=config.seed,
        subset=config.subset,
        flip=config.flip,
        image_column=config.image_column,
        label_column=config.label_column,
        task=config.task,
    )
    for line in data.inventory:
        note(line)
    if config.metric is not None:
        data = replace(data, metric=config.metric)
        tasks.of(data)  # refuses a metric that the task has not
    files = [weights_of(spec, data) for spec in specs]
    files += [Path(spec.classes) for spec in specs if spec.classes is not None]
    keys = [
        hashlib.sha256(file.read_bytes()).hexdigest()[:16]
        for file in files
        if file is not None and file.is_file()
    ]
    return data, replace(config, data_key=data.key, weights_key=",".join(keys) or None)


def _require_folder(out: Path) -> None:
    """Raise SpecError where the results folder would be below a file."""
    there = next(folder for folder in (out, *out.absolute().parents) if os.access(folder, os.F_OK))
    if not there.is_dir():
        raise SpecError(f"--out {out}: {there} is a file; give a folder")


def prepare(
    config: StudyConfig,
    data: ImageData,
    *,
    out: Path,
    device: torch.device,
    callback: Callback,
) -> Prepared:
    """Load or train the teacher, evaluate it on validation, and lay out what trials share.

    Its latency is measured only for a budget of latency.
    """
    started = time.perf_counter()
    callback.on_prepare(tasks.of(data).metric)
    for spec in teacher_specs(config):
        if text := about_scratch(spec, data):
            callback.on_message(text)
    callback.on_message(f"Loading the teacher {config.teacher}")
    context = lay_out(
        config,
        data,
        out=out,
        device=device,
        on_epoch=callback.on_teacher_epoch,
        note=callback.on_message,
    )
    teachers = context.teachers
    callback.on_message(f"Evaluating the teacher on {len(data.val):,} validation images")
    assert context.teacher_evaluation is not None
    found = context.teacher_evaluation()
    seconds = time.perf_counter() - started
    entry = TeacherEntry(
        name=" + ".join(teacher.name for teacher in teachers) + NEAREST * knows_none(teachers),
        val=found.value,
        test=None,
        flops=_flops(teachers, callback.on_message),
        params=sum(teacher.params for teacher in teachers),
        latency_ms=None,
        knows_all=any(teacher.classes is None for teacher in teachers),
    )
    for spec, teacher in zip(teacher_specs(config), teachers, strict=True):
        if spec.name == "auto" and teacher.name != spec.name:
            price = f"{amount('flops', entry.flops)}, {amount('params', entry.params)}"
            callback.on_message(f"Teacher auto is {teacher.name}, pretrained: {price}")
    if config.is_limited("budget_ms"):
        entry = with_latency(entry, context, callback.on_message)
    return Prepared(context=context, teacher=entry, details=found.details, seconds=seconds)


def lay_out(
    config: StudyConfig,
    data: ImageData,
    *,
    out: Path,
    device: torch.device,
    on_epoch: OnEpoch | None = None,
    note: Note = lambda text: None,
) -> TrialContext:
    """Load or train the teacher, and return what trials share."""
    if device.type == "cpu":
        keep_freed_memory()
    teachers = tuple(
        load_teacher(
            spec,
            data,
            cache_dir=out / CACHE,
            seed=config.seed,
            device=device,
            on_epoch=on_epoch,
            note=note,
        )
        for spec in teacher_specs(config)
    )
    feed = Feed(data.train, device)
    return TrialContext(
        data=data,
        teachers=teachers,
        outputs=tuple(
            TeacherOutputs(
                teacher,
                feed,
                view_seed=config.seed,
                max_bytes=MAX_BYTES // len(teachers),
                disk=Disk(cache_dir=out / CACHE, data_key=data.key),
            )
            for teacher in teachers
        ),
        budget=config.budget,
        latencies=LatencyCache(out / CACHE, require_target(config)),
        device_lock=DeviceLock(str(device)),
        seed=config.seed,
        device=device,
        train=feed,
        val=Feed(data.val, device),
        executions=Executions(out / CACHE),
        weights=files_of(config),
        teacher_evaluation=cache(
            partial(evaluate_teachers, teachers, data.val, data, tasks.of(data), device)
        ),
    )


def teacher_at_chance_on(data: ImageData, val: float, details: Details) -> str:
    """Return the warning of a teacher that is no better than chance on validation, or ''."""
    task, labels = tasks.of(data), data.val.labels
    answer = constant_answer(details, data.classes)
    metric = details.with_noise(task.metric_on(labels))
    return teacher_at_chance(metric, val, task.chance(labels), len(labels), answer)


def _flops(teachers: Sequence[Model], note: Note) -> int | None:
    """Return the FLOPs of all teachers, None where one cannot be counted; a note says why."""
    try:
        counts = [count(t.network, input_shape=t.preprocess.input_shape) for t in teachers]
    except CostError as error:
        note(f"The FLOPs of the teacher are unknown: {error}")
        return None
    return sum(flops for flops, _ in counts)


def with_latency(
    entry: TeacherEntry, context: TrialContext, note: Note, *, limit: float | None = None
) -> TeacherEntry:
    """Return the entry with the latency of all teachers, one after another.

    Without it, and with a note that says why, where one cannot be measured. limit: as in
    `latency_of`.
    """
    note("Measuring the latency of the teacher")
    try:
        found = [
            latency_of(teacher, context.latencies, limit=limit) for teacher in context.teachers
        ]
    except CostError as error:
        note(f"The latency of the teacher {entry.name} is not known: {error}")
        return entry
    return replace(
        entry,
        latency_ms=sum(latency.ms for latency in found),
        latency_low_ms=sum(latency.low_ms for latency in found),
        latency_high_ms=sum(latency.high_ms for latency in found),
    )


def pick_device(name: str) -> torch.device:
    """Return the device for `auto`, `cpu`, `cuda` or `cuda:N`. Raises SpecError."""
    if name == "auto":
        return _numbered(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SpecError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda") or name.startswith("cpu:"):
        raise SpecError(f"--device {name!r}: expected auto, cpu, cuda or cuda:N")
    available = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= available:
        raise SpecError(f"--device {name}: this machine has {available} CUDA devices")
    return _numbered(device)


def _numbered(device: torch.device) -> torch.device:
    """Return a GPU by its number, as its tensors name it, or they would be copied for nothing."""
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device
