"""A trial on toy data: a candidate without a teacher's loss, and what it is run with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from toy_data import CPU, tiny_model, toy_data

from kdsearch.data.feed import Feed
from kdsearch.deploy.device_lock import DeviceLock
from kdsearch.deploy.latency import LatencyCache
from kdsearch.models.model import Model
from kdsearch.spec import Budget, Candidate, DistillSpec, StudentSpec, TrainSpec
from kdsearch.training.teacher_cache import TeacherOutputs
from kdsearch.training.trainer import Epoch
from kdsearch.trials.trial import TrialContext

DATA = toy_data()
SMALL = StudentSpec(family="resnet", knobs={"width": 0.25, "depth": 3})
TRAIN = TrainSpec(epochs=2, batch_size=16, lr=0.05)
PLAIN = Candidate(student=SMALL, distill=DistillSpec(method="none"), train=TRAIN)


def context(path: Path, budget: Budget | None = None) -> TrialContext:
    teacher = tiny_model().freeze()
    outputs = TeacherOutputs(teacher, Feed(DATA.train, CPU), view_seed=0)
    return TrialContext(
        data=DATA,
        teachers=(teacher,),
        outputs=(outputs,),
        budget=budget or Budget(),
        latencies=LatencyCache(path / "cache"),
        device_lock=DeviceLock(),
        seed=0,
        device=CPU,
    )


def assert_same_training(one: tuple[list[Epoch], Model], other: tuple[list[Epoch], Model]) -> None:
    """Assert that two trainings have equal records, but for seconds, and equal weights."""
    for mine, theirs in zip(one[0], other[0], strict=True):
        assert replace(mine, seconds=0.0) == replace(theirs, seconds=0.0)
    state = other[1].state_dict()
    for name, value in one[1].state_dict().items():
        assert torch.equal(value, state[name]), name
