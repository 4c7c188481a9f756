"""The form of a step is measured once a machine, and chosen only where it saves a tenth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from toy_data import CPU, toy_data

from kdsearch.data.base import ImageData
from kdsearch.deploy.pricing import build_student
from kdsearch.models.model import Model
from kdsearch.spec import StudentSpec
from kdsearch.training import autotune
from kdsearch.training.autotune import Executions
from kdsearch.training.step import Execution

DATA = toy_data()
SMALL = StudentSpec(family="resnet", knobs={"width": 0.25, "depth": 3})


def student(*, width: float = 0.25) -> Model:
    return build_student(StudentSpec(family="resnet", knobs={"width": width, "depth": 3}), DATA)


@pytest.fixture
def has_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "_has_bf16", lambda: True)


@pytest.mark.usefixtures("has_bf16")
@pytest.mark.parametrize(("gain", "precision"), [(1.09, "fp32"), (1.11, "bf16"), (0.5, "fp32")])
def test_a_form_is_chosen_for_a_tenth_saved(
    gain: float, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune, "_gain", lambda *_: gain)
    assert Executions(tmp_path).fastest(student(), DATA, CPU) == Execution(precision=precision)


@pytest.mark.usefixtures("has_bf16")
def test_it_is_measured_once_a_family_and_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requested: list[str] = []

    def gain(model: Model, data: ImageData, *_: object) -> float:
        requested.append(f"{model.name} {data.size[0]}")
        return 2.0

    monkeypatch.setattr(autotune, "_gain", gain)
    for width in (0.25, 0.5):
        Executions(tmp_path).fastest(student(width=width), DATA, CPU)
    larger = toy_data(size=16)
    Executions(tmp_path).fastest(build_student(SMALL, larger), larger, CPU)
    assert requested == ["resnet 8", "resnet 16"]


def test_a_cpu_without_bfloat16_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune, "_has_bf16", lambda: False)
    monkeypatch.setattr(autotune, "_gain", lambda *_: pytest.fail("measured"))
    assert Executions(tmp_path).fastest(student(), DATA, CPU) == Execution()


def test_no_cpu_is_offered_channels_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "_gain", lambda *_: 9.0)
    assert not Executions(tmp_path).fastest(student(), DATA, CPU).is_channels_last


def test_a_real_probe_leaves_the_student_and_the_random_numbers_alone(tmp_path: Path) -> None:
    model = student()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert Executions(tmp_path).fastest(model, DATA, CPU).precision in ("fp32", "bf16")
    assert torch.equal(torch.rand(4), expected)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_step_that_waits_measures_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gain of half the work is two, by whichever clock the device has."""

    class Work:
        def __init__(self, rounds: int) -> None:
            self._rounds = rounds

        def epoch(self, number: int) -> None:
            assert number == 1
            for _ in range(self._rounds):
                torch.ones(40_000).sin_()

        def close(self) -> None:
            pass

    rounds = {"fp32": 20, "bf16": 10}
    monkeypatch.setattr(
        autotune, "plain_step", lambda *_, execution, **__: Work(rounds[execution.precision])
    )
    gain = autotune._gain(student(), DATA, CPU, Execution(), Execution(precision="bf16"))
    assert 1.5 < gain < 2.6
