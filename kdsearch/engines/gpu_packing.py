"""The number of trials that run at a time: measured on a GPU, one a core on a CPU.

On a GPU trials are threads with a stream and a graph each. How many of them keep it busy depends
on the GPU, on the images and on the host that launches graphs.
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import torch

from kdsearch.deploy.pricing import build_student
from kdsearch.spec import StudentSpec, TrainSpec
from kdsearch.training.autotune import plain_step
from kdsearch.training.cuda_graph import own_stream
from kdsearch.training.step import Execution
from kdsearch.trials.trial import TrialContext

STUDENT = StudentSpec(family="resnet", knobs={"width": 0.25, "depth": 4})
_COUNTS = (1, 2, 4, 8)
_GAIN = 1.1  # in throughput, for which twice as many are worth their memory
_SECONDS = 0.4
_STEPS = 16  # of an epoch


def fitting(context: TrialContext, *, batch_size: int = TrainSpec().batch_size) -> int:
    """Return how many trials run at a time: one a core, or the number that is fastest on a GPU.

    About two seconds on a GPU, with a small student without a teacher on images of the study.
    """
    if context.device.type == "cpu":
        return len(os.sched_getaffinity(0))
    best, found = 0.0, 1
    for count in _COUNTS:
        try:
            rate = steps_per_second(count, context, batch_size=batch_size)
        except torch.OutOfMemoryError:
            break
        if rate < _GAIN * best:
            break
        best, found = rate, count
    return found


def steps_per_second(count: int, context: TrialContext, *, batch_size: int) -> float:
    """Return the steps per second of so many trainings at a time, all together."""
    start = threading.Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        rates = [pool.submit(_rate, context, start, batch_size) for _ in range(count)]
    for error in (rate.exception() for rate in rates):
        if error is not None and not isinstance(error, threading.BrokenBarrierError):
            raise error
    return sum(rate.result() for rate in rates)


def _rate(context: TrialContext, start: threading.Barrier, batch_size: int) -> float:
    """Return the steps a second of one training, begun together with the others."""
    with own_stream(context.device):
        try:
            step = plain_step(
                build_student(STUDENT, context.data),
                context.data,
                context.device,
                steps=_STEPS,
                batch_size=batch_size,
                execution=Execution(),
            )
            step.epoch(1)  # kernels are chosen, the graph is captured
            step.means()  # which waits
        except BaseException:
            start.abort()  # no thread waits for this one
            raise
        try:
            start.wait()
            epochs, began = 0, time.perf_counter()
            while time.perf_counter() < began + _SECONDS:
                step.epoch(1)
                step.means()
                epochs += 1
            seconds = time.perf_counter() - began
        finally:
            step.close()
    return epochs * _STEPS / seconds
