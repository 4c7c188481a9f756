"""The reference values of tests/golden/losses.json, and the tensors that they were taken on."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "losses.json").read_text())


def golden(name: str) -> Tensor:
    """Return amp * (sin(0.1 n k + c) + sin(0.003 n^2 + 2 c) / 2) for n = 1, 2, ... in C order."""
    say = GOLDEN["tensors"][name]
    n = torch.arange(1, torch.Size(say["shape"]).numel() + 1, dtype=torch.float64)
    wave = torch.sin(0.1 * n * say["k"] + say["c"]) + 0.5 * torch.sin(0.003 * n * n + 2 * say["c"])
    return (say["amp"] * wave).reshape(say["shape"])


def assert_golden(loss: Tensor, student: Tensor, case: dict) -> None:
    loss.backward()
    close = {"rtol": 1e-9, "atol": 0}
    torch.testing.assert_close(loss.item(), case["value"], **close)
    torch.testing.assert_close(
        student.grad.flatten()[:5], torch.tensor(case["grad_first5"], dtype=torch.float64), **close
    )
    torch.testing.assert_close(student.grad.norm().item(), case["grad_l2"], **close)
