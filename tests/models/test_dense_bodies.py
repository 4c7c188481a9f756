"""Bodies under heads: dilated stages, networks of timm, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kdsearch.deploy.closed_forms import count_shapes
from kdsearch.deploy.flops import count, traced_flops
from kdsearch.errors import SpecError
from kdsearch.models import dense
from kdsearch.models.features import bare
from kdsearch.models.inherit.library import statistics_of
from kdsearch.models.inherit.start import inherit
from kdsearch.models.model import Model, Preprocess
from kdsearch.models.students._library import BUILDERS
from kdsearch.models.weights import save_weights
from kdsearch.space import Value
from kdsearch.spec import StudentSpec

OWN = ("resnet", "mobilenet", "convnext")
TIMM = ("timm:mobilenetv3_small_100", "timm:efficientnet_lite0", "timm:tf_efficientnet_lite0")
SIZE = (64, 96)


def built(family: str, kind: str = "lraspp", **knobs: Value) -> dense.DenseStudent:
    small = {} if ":" in family else {"width": 0.25, "depth": 8}
    own = {**small, "head.kind": kind, "head.channels": 16}
    own |= {name.replace("head_", "head."): value for name, value in knobs.items()}
    torch.manual_seed(0)
    spec = StudentSpec(family=family, knobs=own)
    return dense.build(spec, channels=3, num_classes=5, size=SIZE).eval()


def strides(network: dense.DenseStudent, maps: list[Tensor]) -> list[int]:
    return [SIZE[0] // found.shape[2] for found in maps]


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("family", [*OWN, *TIMM])
def test_the_deepest_map_has_the_output_stride_and_weights_stay(
    family: str, output_stride: int
) -> None:
    plain, dilated = built(family), built(family, head_output_stride=output_stride)
    image = torch.rand(1, 3, *SIZE)
    with torch.no_grad():
        before, after = plain.maps(image), dilated.maps(image)
    assert strides(plain, before) == [4, 8, 16, 32]
    assert strides(dilated, after) == [min(s, output_stride) for s in (4, 8, 16, 32)]
    assert all(a.shape[3] * SIZE[0] == a.shape[2] * SIZE[1] for a in after)
    assert shapes(plain) == shapes(dilated)
    for one, other in zip(plain.state_dict().values(), dilated.state_dict().values(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("family", [*OWN, "timm:resnet18", "timm:convnext_atto"])
def test_maps_of_dilated_stages_keep_their_values_at_the_old_positions(
    family: str, output_stride: int
) -> None:
    plain, dilated = built(family), built(family, head_output_stride=output_stride)
    image = torch.rand(1, 3, *SIZE)
    with torch.no_grad():
        before, after = plain.maps(image), dilated.maps(image)
    for one, other in zip(before, after, strict=True):
        step = other.shape[2] // one.shape[2]
        torch.testing.assert_close(other[:, :, ::step, ::step], one, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "kind"),
    [*zip(OWN, ("lraspp", "aspp", "unet"), strict=True), (TIMM[0], "fpn"), (TIMM[2], "lraspp")],
)
def test_a_dilated_network_is_priced_by_what_it_computes(family: str, kind: str) -> None:
    plain, dilated = built(family, kind), built(family, kind, head_output_stride=8)
    shape = (3, *SIZE)
    flops, params = count(dilated, input_shape=shape)
    assert flops == traced_flops(dilated, shape)
    if family in OWN:
        found = count_shapes(dilated, shape)
        assert found is not None
        assert found.flops == flops
    cheaper, same = count(plain, input_shape=shape)
    assert params == same
    assert flops > 1.2 * cheaper


@pytest.mark.parametrize("family", [*OWN, TIMM[1]])
def test_32_and_strides_that_are_smaller_anyway_change_nothing(family: str) -> None:
    plain, same = built(family), built(family, head_output_stride=32)
    assert repr(plain) == repr(same)


def test_an_output_stride_may_stand_under_its_head() -> None:
    assert repr(built("resnet", "fpn", **{"head.fpn.output_stride": 16})) == repr(
        built("resnet", "fpn", head_output_stride=16)
    )


@pytest.mark.parametrize(
    ("family", "knobs", "words"),
    [
        ("resnet", {"head_output_stride": 12}, "output_stride: 12 is not one of 8, 16, 32"),
        ("timm:resnet18d", {"head_output_stride": 16}, "stages that stride by convolutions alone"),
        ("vit", {}, "gives no maps at several strides"),
        ("timm:vit_tiny_patch16_224", {}, "gives no maps at several strides"),
        ("torchvision:resnet18", {}, "gives no maps at several strides"),
        ("timm:resnt18", {}, "did you mean 'resnet18'"),
        ("timm:resnet18", {"width": 0.5}, "has no knob 'width'"),
        ("timm:resnet18", {"cut": 1}, "cut 1 leaves no map at a stride from 4"),
    ],
)
def test_what_no_body_can_be_is_refused_with_the_reason(
    family: str, knobs: dict[str, Value], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        built(family, **knobs)


def test_blocks_and_stages_of_a_network_of_timm_can_be_left_out() -> None:
    whole, less = built("timm:resnet18"), built("timm:resnet18", depth=0.0, cut=4)
    image = torch.rand(1, 3, *SIZE)
    assert strides(less, less.maps(image)) == [4, 8, 16]
    assert len(shapes(less)) < len(shapes(whole))
    assert shapes(less).items() <= shapes(whole).items() | {
        (name, shape) for name, shape in shapes(less).items() if name.startswith("head.")
    }


def test_each_weight_of_a_body_of_timm_learns() -> None:
    network = built("timm:mobilenetv3_small_100").train()
    network(torch.rand(2, 3, *SIZE)).square().sum().backward()
    assert [n for n, weight in network.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("output_stride", [16, 32])
def test_a_body_of_timm_starts_from_its_pretrained_weights(
    tmp_path: Path, output_stride: int
) -> None:
    family = "timm:mobilenetv3_small_100"
    torch.manual_seed(1)
    source = BUILDERS["timm"]("mobilenetv3_small_100", 3, 1000, SIZE)
    save_weights(source, tmp_path / "weights.safetensors")
    knobs = {"head.kind": "lraspp", "head.output_stride": output_stride}
    spec = StudentSpec(family=family, init="pretrained", knobs=knobs)
    network = dense.build(spec, channels=3, num_classes=5, size=SIZE)
    shown = Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3, resolution=SIZE, channels=3)
    student = Model(family, network, shown)
    files = {family: tmp_path / "weights.safetensors"}
    found = inherit(student, spec, files=files, teachers=())
    assert found is not None
    own, given = bare(student.network).state_dict(), source.state_dict()
    bodies = {name.removeprefix("body."): t for name, t in own.items() if name[:5] == "body."}
    assert all(torch.equal(tensor, given[name]) for name, tensor in bodies.items())
    assert student.inherited == {n for n, _ in network.named_parameters() if n[:5] == "body."}
    assert student.preprocess.mean == statistics_of(family).mean
    wrong = BUILDERS["timm"]("resnet18", 3, 1000, SIZE)
    save_weights(wrong, tmp_path / "weights.safetensors")
    with pytest.raises(SpecError, match="these are not the weights of timm:mobilenetv3_small_100"):
        inherit(student, spec, files=files, teachers=())


def test_a_body_of_timm_starts_from_a_teacher_of_its_kind() -> None:
    family, knobs = "timm:resnet18", {"head.kind": "fpn", "head.channels": 16}
    spec = StudentSpec(family=family, init="teacher", knobs=knobs)
    shown = Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3, resolution=SIZE, channels=3)
    student, teacher = (
        Model(family, dense.build(spec, channels=3, num_classes=5, size=SIZE), shown)
        for _ in range(2)
    )
    teacher.architecture = spec
    inherit(student, spec, files={}, teachers=(teacher,))
    for name, tensor in bare(student.network).state_dict().items():
        assert torch.equal(tensor, bare(teacher.network).state_dict()[name]), name
    other = replace(spec, knobs=knobs | {"cut": 4})
    student = Model(family, dense.build(other, channels=3, num_classes=5, size=SIZE), shown)
    message = f"body of the teacher {family} has no knobs, that of the student {family} has cut 4"
    with pytest.raises(SpecError, match=message):
        inherit(student, other, files={}, teachers=(teacher,))
