"""A trial on toy data: a candidate without a teacher's loss, and what it is run with."""

from __future__ import annotations

from pathlib import Path

from toy_data import CPU, tiny_model, toy_data

from kdsearch.data.feed import Feed
from kdsearch.deploy.device_lock import DeviceLock
from kdsearch.deploy.latency import LatencyCache
from kdsearch.spec import Budget, Candidate, DistillSpec, StudentSpec, TrainSpec
from kdsearch.training.teacher_cache import TeacherOutputs
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
