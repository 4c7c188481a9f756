"""Laws that every student family obeys, whoever wrote it."""

from __future__ import annotations

import inspect
from dataclasses import replace

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from kdsearch.deploy.flops import count
from kdsearch.deploy.formats.onnx import onnx_bytes, to_onnx, verify
from kdsearch.errors import SpecError
from kdsearch.models.students import FAMILIES, build, check, knobs_of
from kdsearch.models.students.base import Student, dealt, scaled
from kdsearch.space import Choice, Float, Int
from kdsearch.spec import StudentSpec
from kdsearch.tasks.classification import Classification

FAMILY = pytest.mark.parametrize("family", FAMILIES.names())
TRANSFORMER = pytest.mark.parametrize(("family", "prefix"), [("vit", 0), ("deit", 2)])
SMALL = {"width": 0.25, "depth": 4}


def make(family: str, *, in_channels: int = 1, side: int = 8, **knobs: float) -> Student:
    spec = StudentSpec(family=family, knobs={**SMALL, **knobs})
    student = build(spec, in_channels=in_channels, num_classes=3, data_size=side)
    assert isinstance(student, Student)
    return student


def parameters(student: nn.Module) -> int:
    return sum(parameter.numel() for parameter in student.parameters())


@FAMILY
@pytest.mark.parametrize(("in_channels", "side"), [(1, 8), (3, 28), (3, 32), (3, 64), (3, 224)])
def test_outputs_have_the_shapes_they_promise(family: str, in_channels: int, side: int) -> None:
    student = make(family, in_channels=in_channels, side=side).eval()
    x = torch.randn(2, in_channels, side, side)

    with torch.no_grad():
        outputs = student.features(x)
        logits = student(x)

    assert outputs.logits.shape == (2, 3)
    assert outputs.embedding.shape[0] == 2
    assert outputs.embedding.ndim == 2
    assert 3 <= len(outputs.stages) <= 5
    sizes = [side] + [map_.shape[2] for map_ in outputs.stages]
    assert sizes == sorted(sizes, reverse=True)
    assert all(map_.shape[2] == map_.shape[3] for map_ in outputs.stages)
    torch.testing.assert_close(outputs.logits, logits)


@FAMILY
def test_price_and_file_see_the_logits_alone(family: str) -> None:
    """Stages, attention and heads are views that nothing at inference pays for."""
    student = make(family, in_channels=3, side=16)

    graph = onnx.load_from_string(onnx_bytes(student, input_shape=(3, 16, 16))).graph
    flops, params = count(student, input_shape=(3, 16, 16))

    assert len(graph.output) == 1
    assert flops > 0
    assert params == parameters(student)


@FAMILY
def test_same_seed_builds_the_same_student(family: str) -> None:
    torch.manual_seed(0)
    first = make(family).state_dict()
    torch.manual_seed(0)
    second = make(family).state_dict()

    torch.testing.assert_close(dict(first), dict(second), rtol=0, atol=0)


@FAMILY
@pytest.mark.parametrize("knob", ["width", "depth"])
@pytest.mark.parametrize("side", [8, 64])
def test_more_width_or_depth_is_more_parameters(family: str, knob: str, side: int) -> None:
    dim = FAMILIES.get(family).knobs[knob]
    assert isinstance(dim, Float | Int)
    steps = [dim.low, (dim.low + dim.high) // 2 or (dim.low + dim.high) / 2, dim.high]

    with torch.device("meta"):
        counts = [parameters(make(family, side=side, **{knob: value})) for value in steps]

    assert counts[0] < counts[1] < counts[2]


@FAMILY
def test_every_default_range_can_be_built(family: str) -> None:
    for name, dim in knobs_of(family).items():
        ends = dim.options if isinstance(dim, Choice) else (dim.low, dim.high)
        with torch.device("meta"):
            for value in ends:
                for side in (8, 224):
                    make(family, side=side, **{name: value})


@FAMILY
def test_gradient_reaches_every_parameter(family: str) -> None:
    torch.manual_seed(0)
    student = make(family, in_channels=3, side=32)

    F.cross_entropy(student(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0])).backward()

    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@FAMILY
def test_no_gain_starts_at_zero(family: str) -> None:
    """A folding compiler deletes the branch behind a zero gain, and its latency with it."""
    for name, parameter in make(family).named_parameters():
        if parameter.ndim == 1 and name.endswith("weight"):
            assert parameter.abs().max() > 0.1, name


@FAMILY
def test_a_few_steps_learn_a_batch(family: str) -> None:
    torch.manual_seed(0)
    student = make(family)
    x, y = torch.randn(16, 1, 8, 8), torch.arange(16) % 3
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)

    losses = []
    for _ in range(20):
        loss = F.cross_entropy(student(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < 0.5 * losses[0]


@FAMILY
def test_spec_without_knobs_is_the_constructors_default(family: str) -> None:
    shape = {"in_channels": 3, "num_classes": 5, "resolution": 32}
    with torch.device("meta"):
        direct = FAMILIES.get(family)(**shape)
        built = build(StudentSpec(family=family), in_channels=3, num_classes=5, data_size=32)

    assert {k: v.shape for k, v in direct.state_dict().items()} == {
        k: v.shape for k, v in built.state_dict().items()
    }


@FAMILY
def test_knobs_are_the_constructors_other_arguments(family: str) -> None:
    signature = inspect.signature(FAMILIES.get(family).__init__).parameters
    given = {"self", "in_channels", "num_classes", "resolution"}

    assert set(signature) - given == set(knobs_of(family))
    for name, dim in knobs_of(family).items():
        assert signature[name].default in dim


@FAMILY
def test_refusals_name_every_mistake_and_what_is_accepted(family: str) -> None:
    with pytest.raises(
        SpecError, match=r"num_classes 0 .* \[1, .*width 0 .*depth 0 .*whole number"
    ):
        FAMILIES.get(family)(in_channels=1, num_classes=0, resolution=8, width=0, depth=0)
    for wrong in ({"width": "wide"}, {"depth": 4.5}, {"depth": True}, {"width": float("nan")}):
        with pytest.raises(SpecError, match=f"student {family} at 8 px: {next(iter(wrong))} "):
            make(family, **wrong)
    with pytest.raises(SpecError, match="resolution 7 "):
        make(family, side=7)


@FAMILY
def test_unknown_knob_is_answered_with_the_nearest(family: str) -> None:
    spec = StudentSpec(family=family, knobs={"widht": 1.0})
    known = ", ".join(knobs_of(family))

    with pytest.raises(SpecError, match=rf"'widht' \(did you mean 'width'\?\); it accepts {known}"):
        check(spec)
    check(replace(spec, knobs={"width": 1.0}))


@pytest.mark.parametrize(
    ("family", "side", "fewest"),
    [
        ("resnet", 32, 3),
        ("resnet", 64, 4),
        ("mobilenet", 32, 4),
        ("convnext", 32, 3),
        ("convnext", 64, 4),
    ],
)
def test_depth_has_a_block_for_every_stage(family: str, side: int, fewest: int) -> None:
    assert len(make(family, side=side, depth=fewest).stages) == fewest
    with pytest.raises(
        SpecError, match=rf"depth {fewest - 1} is not a whole number in \[{fewest},"
    ):
        make(family, side=side, depth=fewest - 1)


def test_resnet_is_resnet18_and_resnet20_of_the_paper() -> None:
    """11.7 M parameters with 1,000 classes (torchvision: 11,689,512); 0.27 M with 10 (He et al.).

    ResNet-20 here has projection shortcuts (32*16 + 64*32 weights, 2*96 gains and biases more
    than the 269,722 of the paper's table, whose BatchNorm and head are counted alike).
    """
    with torch.device("meta"):
        large = FAMILIES.get("resnet")(in_channels=3, num_classes=1000, resolution=224)
        small = FAMILIES.get("resnet")(in_channels=3, num_classes=10, resolution=32, depth=9)

    assert parameters(large) == 11_689_512
    assert parameters(small) == 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64)


def test_resolution_of_the_spec_wins_over_the_datas() -> None:
    spec = StudentSpec(family="resnet", resolution=64, knobs=SMALL)
    with torch.device("meta"):
        student = build(spec, in_channels=3, num_classes=3, data_size=32)

    assert len(student.features(torch.empty(1, 3, 64, 64, device="meta")).stages) == 4


@TRANSFORMER
def test_attention_is_query_key_and_value_of_the_blocks_that_give_the_stages(
    family: str, prefix: int
) -> None:
    student = make(family, side=16, depth=6).eval()
    projected = []
    for block in student.blocks:
        block.qkv.register_forward_hook(lambda _, given, gave: projected.append(gave))

    with torch.no_grad():
        outputs = student.features(torch.randn(2, 1, 16, 16))

    width = outputs.embedding.shape[1]
    assert [found.shape for found in outputs.attention] == [(2, 3 * width, 8, 8)] * 4
    assert [found.shape for found in outputs.stages] == [(2, width, 8, 8)] * 4
    for found, block in zip(outputs.attention, (0, 2, 3, 5), strict=True):
        row, column = 5, 3
        assert torch.equal(found[:, :, row, column], projected[block][:, prefix + 8 * row + column])


def test_a_network_without_attention_gives_none() -> None:
    with torch.no_grad():
        outputs = make("resnet").eval().features(torch.randn(2, 1, 8, 8))

    assert outputs.attention == outputs.heads == ()


@pytest.mark.parametrize("is_training", [True, False])
def test_deit_answers_with_the_mean_of_its_heads(is_training: bool) -> None:
    torch.manual_seed(0)
    student = make("deit").train(is_training)
    x = torch.randn(2, 1, 8, 8)
    normalised = []
    student.norm.register_forward_hook(lambda _, given, gave: normalised.append(gave))

    with torch.no_grad():
        outputs = student.features(x)
        logits = student(x)

    of_class, of_distillation = normalised[0][:, :2].unbind(dim=1)
    heads = student.class_head(of_class), student.distillation_head(of_distillation)
    torch.testing.assert_close(outputs.heads, heads)
    torch.testing.assert_close(outputs.logits, (heads[0] + heads[1]) / 2)
    torch.testing.assert_close(outputs.embedding, (of_class + of_distillation) / 2)
    assert torch.equal(outputs.logits, logits)


def test_deits_heads_learn_apart_and_share_the_blocks() -> None:
    torch.manual_seed(0)
    student = make("deit")

    F.cross_entropy(
        student.features(torch.randn(4, 1, 8, 8)).heads[1], torch.tensor([0, 1, 2, 0])
    ).backward()

    assert student.class_head.weight.grad is None
    assert student.distillation_head.weight.grad.abs().sum() > 0
    assert student.blocks[0].qkv.weight.grad.abs().sum() > 0


def test_deit_costs_two_tokens_and_one_head_more_than_a_vit() -> None:
    """A block of T tokens takes 12 T D^2 + 2 T^2 D, and fvcore's 5 a value for each LayerNorm."""
    shape, depth = (3, 32, 32), 4
    vit, deit = (make(family, in_channels=3, side=32) for family in ("vit", "deit"))
    dim, tokens = vit.norm.weight.shape[0], 64

    (flops, params), (more, weights) = (count(s, input_shape=shape) for s in (vit, deit))

    block = 12 * 2 * dim**2 + 2 * ((tokens + 2) ** 2 - tokens**2) * dim
    assert more - flops == depth * block + (2 * depth + 1) * 2 * dim * 5 + dim * 3
    assert weights - params == 2 * dim + 3 * dim + 3


@pytest.mark.parametrize("family", ["vit", "deit"])
def test_shipped_file_of_a_transformer_agrees_with_it(family: str, tmp_path) -> None:
    torch.manual_seed(0)
    student = make(family).eval()

    to_onnx(student, input_shape=(1, 8, 8), path=tmp_path / "student.onnx", metadata={})

    images = [torch.randn(50, 1, 8, 8)]
    assert verify(student, tmp_path / "student.onnx", images, Classification()).max_rel < 1e-4


@pytest.mark.parametrize("family", ["vit", "deit"])
def test_transformers_refuse_a_side_without_divisors(family: str) -> None:
    with pytest.raises(SpecError, match=rf"{family}: no patch divides 97 px .* such as 96"):
        make(family, side=97)


def test_alias_builds_the_family() -> None:
    assert FAMILIES.get("mobilenetv2") is FAMILIES.get("mobilenet")


@pytest.mark.parametrize(
    ("depth", "stages", "expected"),
    [
        (8, 4, [2, 2, 2, 2]),
        (9, 4, [2, 2, 3, 2]),
        (10, 4, [2, 2, 3, 3]),
        (11, 4, [2, 3, 3, 3]),
        (4, 3, [1, 2, 1]),
    ],
)
def test_blocks_are_dealt_evenly_the_rest_to_the_middle(
    depth: int, stages: int, expected: list[int]
) -> None:
    assert dealt(depth, stages) == expected


def test_channels_are_the_nearest_multiple_at_least_one() -> None:
    assert [scaled(16, width) for width in (0.01, 0.5, 0.74, 0.76, 1.0, 1.3)] == [
        8,
        8,
        8,
        16,
        16,
        24,
    ]
    assert scaled(16, 0.3, multiple=4) == 4


OWN = """
from torch import nn
from kdsearch.space import Float
from kdsearch.models.students.base import Student
from kdsearch.models.features import Outputs

class Linear(Student):
    knobs = {"gain": Float(low=0.1, high=2.0)}

    def __init__(self, *, in_channels, num_classes, resolution, gain=1.0):
        super().__init__()
        self.gain = gain
        self.head = nn.Linear(in_channels * resolution**2, num_classes)

    def features(self, x):
        embedding = self.gain * x.flatten(1)
        return Outputs(self.head(embedding), embedding)
"""


def test_users_own_family_is_built_and_checked_like_ours(tmp_path) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    spec = StudentSpec(family=f"{path}:Linear", knobs={"gain": 0.5})

    student = build(spec, in_channels=1, num_classes=3, data_size=8)

    assert student(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    with pytest.raises(SpecError, match="it accepts gain"):
        check(replace(spec, knobs={"width": 1}))
