"""Baselines are counted as students are; one that cannot be has a message."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_data import CPU, tiny_model, toy_data

from kdsearch.deploy.device_lock import DeviceLock
from kdsearch.deploy.flops import count
from kdsearch.deploy.latency import LatencyCache
from kdsearch.deploy.pricing import build_student
from kdsearch.spec import Budget, StudentSpec
from kdsearch.trials.trial import TrialContext
from kdsearch.workflows import baselines

SMALL = "timm:mobilenetv3_small_050"


def test_a_network_costs_what_the_same_student_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = TrialContext(
        data=toy_data(),
        teachers=(tiny_model().freeze(),),
        outputs=(),
        budget=Budget(params=1.0),  # what breaks a budget is counted too
        latencies=LatencyCache(tmp_path),
        device_lock=DeviceLock(),
        seed=0,
        device=CPU,
    )
    monkeypatch.setattr(baselines, "NETWORKS", (SMALL, "timm:no_such_network"))
    message: list[str] = []
    (found,) = baselines.measure_baselines(context, tmp_path, message.append)
    student = build_student(StudentSpec(family=SMALL), context.data)
    flops, params = count(student.network, input_shape=student.preprocess.input_shape)
    assert (found.name, found.flops, found.params) == (SMALL, flops, params)
    assert found.latency_ms is None  # nobody asked
    assert len(message) == 1
    assert "no_such_network" in message[0]
    assert baselines.measure_baselines(context, tmp_path, message.append) == (
        found,
    )  # all of it was kept
