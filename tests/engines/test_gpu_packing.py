"""How many trials run at a time, and that threads of one process do not disturb one another."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_trial import PLAIN, context

from kdsearch.engines import gpu_packing
from kdsearch.models.weights import read_weights
from kdsearch.spec import DistillSpec
from kdsearch.trials.trial import WEIGHTS, run_trial


@pytest.mark.parametrize(
    ("rates", "found"),
    [
        ({1: 100, 2: 190, 4: 200, 8: 900}, 2),
        ({1: 100, 2: 105}, 1),
        ({1: 100, 2: 200, 4: 400, 8: 800}, 8),
        ({1: 100, 2: 200, 4: None}, 2),
        ({1: None}, 1),
    ],
)
def test_more_run_side_by_side_while_that_pays(
    rates: dict[int, float | None],
    found: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twice as many must get a tenth more done; memory that runs out ends the search for more."""

    def rate(count: int, _: object, *, batch_size: int) -> float:
        message = rates[count]
        if message is None:
            raise torch.OutOfMemoryError("no room")
        return message

    monkeypatch.setattr(gpu_packing, "steps_per_second", rate)
    on_gpu = replace(context(tmp_path), device=torch.device("cuda"))
    assert gpu_packing.fitting(on_gpu) == found


def test_a_cpu_has_one_a_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 5})
    assert gpu_packing.fitting(context(tmp_path)) == 3


def test_steps_of_several_are_summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_packing, "_SECONDS", 0.05)
    assert gpu_packing.steps_per_second(2, context(tmp_path), batch_size=16) > 0
    monkeypatch.setattr(gpu_packing, "_rate", lambda *_: 7.0)
    assert gpu_packing.steps_per_second(3, context(tmp_path), batch_size=16) == 21


def test_a_training_that_fails_stops_the_others_and_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(2))
    plain = gpu_packing.plain_step

    def second_fails(*given: object, **named: object) -> object:
        if next(calls) == 1:
            raise torch.OutOfMemoryError("no room")
        return plain(*given, **named)

    monkeypatch.setattr(gpu_packing, "plain_step", second_fails)
    with pytest.raises(torch.OutOfMemoryError):
        gpu_packing.steps_per_second(2, context(tmp_path), batch_size=16)


def test_trials_in_threads_of_one_process_are_those_of_one_after_the_other(tmp_path: Path) -> None:
    """On a GPU trials are threads; each starts from its own seed whatever the others draw."""
    candidates = [
        replace(PLAIN, distill=DistillSpec(method=method, knobs=knobs))
        for method, knobs in (("kd", {}), ("kd", {"temperature": 2.0}), ("fitnet", {}), ("at", {}))
    ]
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        shared, both = context(tmp_path), threading.Barrier(2)

        def run(place: int) -> None:
            both.wait(20)
            message = run_trial(candidates[place], shared, tmp_path / f"together{place}")
            assert message.state == "complete", message.reason

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(run, range(len(candidates))))
        for place, candidate in enumerate(candidates):
            run_trial(candidate, context(tmp_path), tmp_path / f"alone{place}")
    finally:
        torch.set_num_threads(usual)
    for place in range(len(candidates)):
        one, other = (
            read_weights(tmp_path / f"{how}{place}" / WEIGHTS) for how in ("together", "alone")
        )
        for name, value in one.items():
            assert torch.equal(value, other[name]), (place, name)
