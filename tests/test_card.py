"""What the model card tells a reader to type works as printed."""

from __future__ import annotations

import re

import pytest
import torch
from toy_data import toy_data

from kdsearch.card import timm_snippet
from kdsearch.spec import StudentSpec
from kdsearch.taps import bare
from kdsearch.trial import build_student
from kdsearch.weights import save_weights

DATA = toy_data(channels=3, size=32)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "vit_tiny_patch16_224"])
def test_timm_alone_loads_a_student_of_its_own(name, tmp_path, monkeypatch):
    torch.manual_seed(0)
    student = build_student(StudentSpec(family=f"timm:{name}"), DATA).freeze()
    save_weights(bare(student.network), tmp_path / "student.safetensors")
    (code,) = re.findall(r"```python\n(.*?)```", timm_snippet(student, 3), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    found: dict[str, torch.nn.Module] = {}

    exec(code, found)

    images = DATA.val.at(slice(5))
    with torch.no_grad():
        torch.testing.assert_close(found["network"](student.preprocess(images)), student(images))


def test_other_families_are_not_timms():
    assert timm_snippet(build_student(StudentSpec(family="resnet"), DATA), 3) == ""
