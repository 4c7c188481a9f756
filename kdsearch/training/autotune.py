"""Find out in which form a family's training step is fastest here: measured, not assumed.

On a Xeon with AMX, bfloat16 took 1/1.9 of float32's time for a resnet at 32 px, 1/.8 for a
convnext and 1/.64 for a mobilenet at 8 px. On a CPU without instructions for it, bfloat16 takes
several times as long and is not tried.
"""

from __future__ import annotations

import copy
import math
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from kdsearch.data.base import ImageData
from kdsearch.json_cache import JsonCache, processor
from kdsearch.models.model import Model
from kdsearch.spec import DistillSpec, TrainSpec
from kdsearch.training.cuda_graph import own_stream
from kdsearch.training.distiller import Distiller, Side
from kdsearch.training.step import Execution, Session, Step
from kdsearch.training.trainer import threads

_PIXELS = 2**16  # of a batch: 64 images of 32 px
_STEPS = {"cpu": 2, "cuda": 16}  # of an epoch, whose beginning is the host's
_WARM = {"cpu": 1, "cuda": 2}  # epochs until kernels are chosen and graphs captured
_BLOCKS = 5
_BLOCK_SECONDS = 0.04
_GAIN = 1.1  # what a form must save, so that noise does not choose


class Executions(JsonCache[Execution]):
    """The form of each family's steps on this device, below `execution/`: half a second each."""

    def __init__(self, cache_dir: Path) -> None:
        super().__init__(cache_dir / "execution", Execution)

    def fastest(self, student: Model, data: ImageData, device: torch.device) -> Execution:
        """Return the quickest form of an untrained student's steps, which it is copied for.

        bfloat16 is tried first, on a CPU that has it, then channels_last, which only a GPU is
        offered: on a CPU it corrupted the heap of torch 2.15.
        """
        name = processor() if device.type == "cpu" else torch.cuda.get_device_name(device)
        shape = "x".join(map(str, student.preprocess.input_shape))
        key = f"{student.name} | {shape} | {name} | torch {torch.__version__}"
        return self.get_or_measure(key, lambda: _fastest(student, data, device))


def _has_bf16() -> bool:
    """Whether this CPU has instructions for bfloat16."""
    if platform.machine() in ("x86_64", "AMD64"):  # the next call takes any AVX-512 for them
        return torch.cpu._is_avx512_bf16_supported()
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _fastest(student: Model, data: ImageData, device: torch.device) -> Execution:
    best = Execution()
    if device.type == "cpu" and not _has_bf16():
        return best
    other = replace(best, precision="bf16")
    if _gain(student, data, device, best, other) >= _GAIN:
        best = other
    other = replace(best, is_channels_last=True)
    if device.type == "cuda" and _gain(student, data, device, best, other) >= _GAIN:
        best = other
    return best


def _gain(
    student: Model, data: ImageData, device: torch.device, old: Execution, new: Execution
) -> float:
    """Return the median over blocks of the old form's time over the new one's.

    On a CPU, where one epoch gains nothing, its ratio: all blocks of a mobilenet took 6 s, not 3.
    """
    with threads(1), own_stream(device), torch.random.fork_rng([]):
        batch_size = max(8, min(64, _PIXELS // math.prod(student.preprocess.size)))
        steps = [
            plain_step(
                copy.deepcopy(student),
                data,
                device,
                steps=_STEPS[device.type],
                batch_size=batch_size,
                execution=form,
            )
            for form in (old, new)
        ]
        for step in steps:
            _seconds(step, _WARM[device.type], device)
        first = [_seconds(step, 1, device) for step in steps]
        calls = max(1, round(_BLOCK_SECONDS / max(first)))
        ratios = [first[0] / first[1]]
        is_decided = device.type == "cpu" and ratios[0] <= 1
        for block in range(0 if is_decided else _BLOCKS):
            order = steps if block % 2 else steps[::-1]
            taken = {id(step): _seconds(step, calls, device) for step in order}
            ratios.append(taken[id(steps[0])] / taken[id(steps[1])])
        for step in steps:
            step.close()
    return statistics.median(ratios)


def _seconds(step: Step, epochs: int, device: torch.device) -> float:
    """Return the seconds that so many short epochs take; on a CPU, of this thread alone."""
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    started = clock()
    for _ in range(epochs):
        step.epoch(1)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return clock() - started


def plain_step(
    student: Model,
    data: ImageData,
    device: torch.device,
    *,
    steps: int,
    batch_size: int,
    execution: Execution,
) -> Step:
    """Return steps of a student without a teacher, on as many images as its epoch has steps for."""
    labelled = data.labelled
    batch_size = min(len(labelled), batch_size)
    few = labelled.take(torch.arange(steps * batch_size) % len(labelled))
    side = Side(outputs=student.example(few.at(slice(2))), resolution=student.preprocess.resolution)
    session = Session(
        data=replace(data, train=few),
        spec=TrainSpec(epochs=1, batch_size=batch_size),
        seed=0,
        view_seed=0,
        device=device,
        execution=execution,
    )
    return Step(
        student, Distiller(DistillSpec(method="none"), task=session.task, student=side), session
    )
