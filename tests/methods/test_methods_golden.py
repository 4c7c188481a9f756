"""Values and gradients of the reference implementations named in tests/golden/losses.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdsearch import methods

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())


def make(name: str) -> Tensor:
    """Return amp * (sin(0.1 n k + c) + sin(0.003 n^2 + 2 c) / 2) for n = 1, 2, ... in C order."""
    say = GOLDEN["tensors"][name]
    n = torch.arange(1, torch.Size(say["shape"]).numel() + 1, dtype=torch.float64)
    wave = torch.sin(0.1 * n * say["k"] + say["c"]) + 0.5 * torch.sin(0.003 * n * n + 2 * say["c"])
    return (say["amp"] * wave).reshape(say["shape"])


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_value_and_gradient_equal_the_reference(case):
    method = methods.get(case["method"])
    student = make(case["student"]).requires_grad_()
    teacher = make(case["teacher"])
    target = (3 * torch.arange(len(student))) % 10
    pack = (lambda found: [found]) if method.need == "stages" else (lambda found: found)

    loss = method(**case["knobs"])(pack(student), pack(teacher), target)
    loss.backward()

    close = {"rtol": 1e-9, "atol": 0}
    torch.testing.assert_close(loss.item(), case["value"], **close)
    torch.testing.assert_close(
        student.grad.flatten()[:5], torch.tensor(case["grad_first5"], dtype=torch.float64), **close
    )
    torch.testing.assert_close(student.grad.norm().item(), case["grad_l2"], **close)
