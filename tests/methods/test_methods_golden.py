"""Values and gradients of the reference implementations named in tests/golden/losses.json."""

from __future__ import annotations

import pytest
import torch
from golden_losses import GOLDEN, assert_golden, golden

from kdsearch import methods


@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda case: case["name"])
def test_value_and_gradient_equal_the_reference(case):
    method = methods.get(case["method"])
    student = golden(case["student"]).requires_grad_()
    teacher = golden(case["teacher"])
    target = (3 * torch.arange(len(student))) % 10
    pack = (lambda found: [found]) if method.need == "stages" else (lambda found: found)
    assert_golden(method(**case["knobs"])(pack(student), pack(teacher), target), student, case)
