"""Closed forms equal the traced count for each family, and leave what they do not know to it."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdsearch.deploy import flops
from kdsearch.deploy.closed_forms import count_shapes, without_weights
from kdsearch.deploy.flops import count, traced_flops
from kdsearch.errors import CostError
from kdsearch.models import students
from kdsearch.models.features import Outputs
from kdsearch.models.students.base import Student
from kdsearch.space import Choice, Int, Value
from kdsearch.spec import StudentSpec

# Each family changes its form at 32 and at 64 px.
INPUTS = ((1, 16, 16), (3, 32, 32), (1, 48, 40), (3, 64, 64))


class Custom(Student):
    """One function of the image, then a linear layer."""

    def __init__(self, function: object, width: int = 3) -> None:
        super().__init__()
        self.function = function
        self.head = nn.Linear(width, 2)

    def features(self, x: Tensor) -> Outputs:
        embedding = self.function(x)
        return Outputs(self.head(embedding), embedding)


def drawn_knobs(family: str, rng: random.Random) -> dict[str, Value]:
    """Return a value of each knob, from its default range."""
    drawn: dict[str, Value] = {}
    for name, dim in students.knobs_of(family).items():
        if isinstance(dim, Choice):
            drawn[name] = rng.choice(dim.options)
        elif isinstance(dim, Int):
            drawn[name] = rng.randint(dim.low, dim.high)
        else:
            drawn[name] = math.exp(rng.uniform(math.log(dim.low), math.log(dim.high)))
    return drawn


@pytest.mark.parametrize("shape", INPUTS)
@pytest.mark.parametrize("family", students.names())
def test_closed_forms_equal_the_traced_count(family: str, shape: tuple[int, int, int]) -> None:
    knobs = drawn_knobs(family, random.Random(f"{family} {shape}"))
    spec, (channels, *size) = StudentSpec(family=family, knobs=knobs), shape

    def build() -> nn.Module:
        return students.build(spec, in_channels=channels, num_classes=10, data_size=tuple(size))

    with without_weights():
        blank = build()
    network, found = build(), count_shapes(blank, shape)

    assert all(weight.is_meta for weight in blank.parameters())
    assert found is not None
    assert found.flops == traced_flops(network, shape)
    assert found == count_shapes(network, shape)
    params = sum(weight.numel() for weight in network.parameters())
    assert count(blank, input_shape=shape) == (found.flops, params)


def test_a_network_without_weights_is_traced_too() -> None:
    spec = StudentSpec(family="deit", knobs={"depth": 1})

    def build() -> nn.Module:
        return students.build(spec, in_channels=3, num_classes=2, data_size=16)

    with without_weights():
        blank = build()

    assert traced_flops(blank, (3, 16, 16)) == traced_flops(build(), (3, 16, 16))


def test_a_function_without_a_closed_form_is_traced() -> None:
    net = Custom(lambda x: F.adaptive_max_pool2d(x, 1).flatten(1))

    assert count_shapes(net, (3, 8, 8)) is None
    assert count(net, input_shape=(3, 8, 8)) == (3 * 2, 8)


def test_an_operator_without_a_count_is_an_error_in_a_family_too() -> None:
    net = Custom(lambda x: torch.linalg.svdvals(x.flatten(2)))

    with pytest.raises(CostError, match="no FLOP count for aten::linalg_svdvals"):
        count(net, input_shape=(3, 8, 8))


def test_closed_forms_that_the_trace_refutes_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_few(model: nn.Module, shape: tuple[int, int, int]) -> object:
        found = count_shapes(model, shape)
        assert found is not None
        return replace(found, flops=found.flops - 1)

    net = Custom(lambda x: x.mean(dim=(2, 3)))
    monkeypatch.setattr(flops, "_is_exact", {})
    monkeypatch.setattr(flops, "count_shapes", too_few)

    assert [count(net, input_shape=(3, 8, 8))[0] for _ in range(2)] == [3 * 2, 3 * 2]


def test_a_family_is_traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []

    def trace(model: nn.Module, shape: tuple[int, int, int]) -> int:
        traced.append(model)
        return traced_flops(model, shape)

    monkeypatch.setattr(flops, "_is_exact", {})
    monkeypatch.setattr(flops, "traced_flops", trace)
    for width in (2, 3, 4):
        net = Custom(lambda x: x.mean(dim=(2, 3)), width)
        assert count(net, input_shape=(width, 8, 8))[0] == 2 * width

    assert len(traced) == 1


def test_a_student_comes_out_as_it_went_in() -> None:
    net = students.build(StudentSpec(family="vit"), in_channels=3, num_classes=2, data_size=16)
    net.norm.eval()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]

    count(net, input_shape=(3, 16, 16))

    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
