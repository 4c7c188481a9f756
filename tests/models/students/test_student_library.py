"""timm and torchvision models as fixed students, without their weights."""

from __future__ import annotations

import pytest
import torch

from kdsearch.errors import SpecError
from kdsearch.models.features import Tapped
from kdsearch.models.students import build, check, knobs_of
from kdsearch.space import Value
from kdsearch.spec import StudentSpec


def make(family: str, *, in_channels: int = 3, side: int = 32, **knobs: Value) -> Tapped:
    spec = StudentSpec(family=family, knobs=knobs)
    student = build(spec, in_channels=in_channels, num_classes=7, data_size=side)
    assert isinstance(student, Tapped)
    return student


@pytest.mark.parametrize(
    ("family", "in_channels", "side"),
    [
        ("timm:mobilenetv3_small_050", 1, 32),
        ("timm:vit_tiny_patch16_224", 3, 64),
        ("timm:test_vit.r160_in1k", 3, 32),
        ("torchvision:shufflenet_v2_x0_5", 3, 32),
        ("torchvision:squeezenet1_1", 3, 32),
        ("torchvision:mobilenet_v3_small", 3, 48),
    ],
)
def test_library_models_take_the_datas_shape(family: str, in_channels: int, side: int) -> None:
    student = make(family, in_channels=in_channels, side=side).eval()

    with torch.no_grad():
        outputs = student.features(torch.randn(2, in_channels, side, side))

    assert outputs.logits.shape == (2, 7)
    assert outputs.stages


def test_auxiliary_heads_are_left_out() -> None:
    student = make("torchvision:googlenet").train()

    student(torch.randn(2, 3, 32, 32)).sum().backward()

    assert all(parameter.grad is not None for parameter in student.parameters())


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("timm:resnet81", r"timm has no model 'resnet81' \(did you mean 'resnet"),
        ("timm:resnet18.a9_in1k", r"no weights 'a9_in1k' \(did you mean 'resnet18.a"),
        (
            "torchvision:resnet81",
            r"torchvision has no classifier 'resnet81' \(did you mean 'resnet",
        ),
        ("torchvision:fasterrcnn_resnet50_fpn", "torchvision has no classifier"),
    ],
)
def test_unknown_name_is_answered_with_the_nearest(family: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check(StudentSpec(family=family))


def test_knobs_leave_parts_out_and_other_values_are_refused() -> None:
    assert list(knobs_of("timm:resnet18")) == ["depth", "drop", "cut"]
    with pytest.raises(SpecError, match="it accepts depth, drop, cut"):
        check(StudentSpec(family="timm:resnet18", knobs={"width": 0.5}))
    with pytest.raises(SpecError, match=r"depth 1.5 is not a number in \[0.0, 1.0\]; drop 'first'"):
        make("timm:resnet18", depth=1.5, drop="first")


def test_what_cannot_be_built_raises_with_the_reason() -> None:
    with pytest.raises(
        SpecError, match="cannot be built for 1 x 32 x 32: torchvision models read 3"
    ):
        make("torchvision:resnet18", in_channels=1)
    with pytest.raises(SpecError, match="Inception3 fails on an input of 3 x 32 x 32"):
        make("torchvision:inception_v3")
