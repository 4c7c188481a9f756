"""The reference values of tests/golden/dense_losses.json, and the tensors they were taken on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from kdsearch.data.base import VOID

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "dense_losses.json").read_text())
CASES = {case["name"]: case for case in GOLDEN["cases"]}


def golden(name: str) -> Tensor:
    """Return a tensor of the golden file."""
    how = GOLDEN["inputs"][name]
    random = np.random.RandomState(how["seed"])
    if name == "seg_target":
        ids = random.randint(0, 6, how["shape"])
        return torch.from_numpy(np.where(ids == 5, VOID, ids)).byte()
    if how["kind"] == "uniform":
        return how.get("scale", 1.0) * torch.from_numpy(random.uniform(size=how["shape"]))
    return how["scale"] * torch.from_numpy(random.standard_normal(how["shape"]))


def assert_golden(name: str, student: Tensor, loss: Callable[[Tensor], Tensor]) -> None:
    """Assert value and gradient of a case."""
    case = CASES[name]
    student.requires_grad_()
    value = loss(student)
    (slope,) = torch.autograd.grad(value, student)
    # SKD's code computes in float32, torchvision's GIoU adds 1e-7 to what it divides by.
    is_rounded = name in ("skd_pair_scale0.5", "box_giou_kd")
    close = {"rel": 1e-6, "abs": 1e-8} if is_rounded else {"rel": 1e-9, "abs": 1e-12}
    assert value.item() == pytest.approx(case["value"], **close)
    assert float(slope.norm()) == pytest.approx(case["grad_l2"], **close)
    assert slope.flatten()[:5].tolist() == pytest.approx(case["grad_first5"], **close)
