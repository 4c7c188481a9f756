"""A repeat is the same recipe with weights, order and views of its own, whatever the method."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_data import CPU, tiny_model, toy_data

from kdsearch.data.feed import Feed
from kdsearch.deploy.device_lock import DeviceLock
from kdsearch.deploy.latency import LatencyCache
from kdsearch.errors import SpecError
from kdsearch.models.features import Outputs
from kdsearch.models.weights import read_weights
from kdsearch.spec import Budget, Candidate, DistillSpec, StudentSpec, TrainSpec
from kdsearch.training.teacher_cache import TeacherOutputs
from kdsearch.trials.trial import WEIGHTS, TrialContext, run_trial

DATA = toy_data()
STUDENT = StudentSpec(family="resnet", knobs={"width": 0.25, "depth": 3})
STILL = TrainSpec(epochs=2, batch_size=16, lr=1e-12)  # the weights stay what they were
KD, HARD = DistillSpec(method="kd"), DistillSpec(method="hard_label")


class Listening(TeacherOutputs):
    """Notes the samples and the view of each batch."""

    received: list[tuple[list[int], int]]

    def rows(self, index: Tensor, host: Tensor, view: int, **wanted: Any) -> Outputs | None:
        self.received.append((host.tolist(), view))
        return super().rows(index, host, view, **wanted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a training began with and was shown, and what it scored."""

    weights: dict[str, Tensor]
    received: list[tuple[list[int], int]]
    val: float | None

    def views(self) -> list[int]:
        return list(dict.fromkeys(view for _, view in self.received))

    def order(self) -> list[list[int]]:
        return [samples for samples, _ in self.received]


def trained(path: Path, distill: DistillSpec, **recipe: int) -> Trained:
    teacher = tiny_model().freeze()
    outputs = Listening(teacher, Feed(DATA.train, CPU), view_seed=0)
    outputs.received = []
    context = TrialContext(
        data=DATA,
        teachers=(teacher,),
        outputs=(outputs,),
        budget=Budget(),
        latencies=LatencyCache(path / "cache"),
        device_lock=DeviceLock(),
        seed=0,
        device=CPU,
    )
    train = replace(STILL, **recipe)  # type: ignore[arg-type]
    folder = path / f"{distill.method}-{recipe}"
    outcome = run_trial(Candidate(student=STUDENT, distill=distill, train=train), context, folder)
    return Trained(
        weights=read_weights(folder / WEIGHTS), received=outputs.received, val=outcome.val
    )


def is_same_start(one: Trained, other: Trained) -> bool:
    names = [name for name, value in one.weights.items() if value.dim() > 1]
    return all(torch.allclose(one.weights[name], other.weights[name], atol=1e-6) for name in names)


def test_two_methods_share_the_start_the_order_and_the_views_of_a_repeat(tmp_path: Path) -> None:
    one, other = (trained(tmp_path, distill, repeat=2) for distill in (KD, HARD))
    assert is_same_start(one, other)
    assert one.received == other.received


def test_two_repeats_share_none_of_them(tmp_path: Path) -> None:
    one, other = (trained(tmp_path, KD, repeat=repeat) for repeat in (1, 2))
    assert not is_same_start(one, other)
    assert one.order() != other.order()
    assert (one.views(), other.views()) == ([3, 4], [5, 6])


def test_the_searchs_own_training_is_none_of_the_repeats(tmp_path: Path) -> None:
    search, repeat = trained(tmp_path, KD), trained(tmp_path, KD, repeat=1)
    assert not is_same_start(search, repeat)
    assert search.views() == [1, 2]


def test_a_pool_of_views_is_a_pool_of_its_own(tmp_path: Path) -> None:
    assert trained(tmp_path, KD, epochs=3, views=2).views() == [1, 2]
    assert trained(tmp_path, KD, epochs=3, views=2, repeat=2).views() == [5, 6]


def test_a_repeat_of_0_is_the_candidate_of_old() -> None:
    candidate = Candidate(student=STUDENT, distill=KD, train=STILL)
    assert candidate.digest() == replace(candidate, train=replace(STILL, repeat=0)).digest()
    assert candidate.digest() != replace(candidate, train=replace(STILL, repeat=1)).digest()
    with pytest.raises(SpecError, match="repeat: -1"):
        TrainSpec(repeat=-1)
