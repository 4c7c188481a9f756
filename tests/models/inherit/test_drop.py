"""Blocks are left out by shape alone: the first of a row stays, and so does the order."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from kdsearch.deploy.flops import count
from kdsearch.errors import SpecError
from kdsearch.models.features import bare
from kdsearch.models.inherit.drop import Row, _changes, find_rows, leave_out
from kdsearch.models.students import build
from kdsearch.space import Value
from kdsearch.spec import StudentSpec

SHAPE = (3, 8, 8)


class Block(nn.Module):
    """Adds a tagged 1x1 convolution and its norm; strided blocks halve the map."""

    def __init__(self, channels: int, stride: int = 1, shift: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 1, stride, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Tower(nn.Module):
    """Rows of blocks, then a mean."""

    def __init__(self, *rows: list[Block]) -> None:
        super().__init__()
        self.rows = nn.ModuleList([nn.Sequential(*row) for row in rows])
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        for row in self.rows:
            x = row(x)
        return self.head(x.mean(dim=(2, 3)))


def two_rows() -> Tower:
    return Tower([Block(3) for _ in range(4)], [Block(3, 2), Block(3), Block(3)])


def blocks(tower: Tower) -> list[list[nn.Module]]:
    return [list(row) for row in tower.rows]


def test_rows_hold_the_blocks_that_keep_the_shape_but_the_first() -> None:
    rows = find_rows(two_rows(), SHAPE)
    assert rows == [
        Row(container="rows.0", units=((1,), (2,), (3,))),
        Row(container="rows.1", units=((1,), (2,))),
    ]


@pytest.mark.parametrize(
    ("depth", "rule", "first", "second"),
    [
        (0.0, "last", [0], [0]),  # strided blocks stay
        (0.34, "last", [0, 1], [0, 1]),  # 1.02 and 0.68 blocks: 1 and 1
        (0.67, "last", [0, 1, 2], [0, 1]),
        (0.67, "even", [0, 1, 3], [0, 2]),
        (1.0, "even", [0, 1, 2, 3], [0, 1, 2]),
    ],
)
def test_a_share_of_each_row_stays_in_its_order(
    depth: float, rule: str, first: list[int], second: list[int]
) -> None:
    tower = two_rows()
    before = blocks(tower)
    leave_out(tower, SHAPE, depth=depth, rule=rule)
    assert blocks(tower) == [[before[0][i] for i in first], [before[1][i] for i in second]]


def turning(angles: list[float], kinds: list[int]) -> Tower:
    """Return a row of blocks that turn each pixel's first two channels by an angle.

    Pixels have two channels of equal size and none in the third; then the cosine between what a
    block is given and what it makes is that of the angle.
    """
    row = [Block(3, shift=kind) for kind in kinds]
    for block, angle in zip(row, angles, strict=True):
        cos, sin = math.cos(angle), math.sin(angle)
        turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        block.conv.weight.data = turn[..., None, None]
        block.norm.eps = 0.0
    return Tower(row)


@pytest.mark.parametrize(
    ("kinds", "depth", "stay"),
    [
        ([0, 0, 0, 0, 0], 0.5, [0, 2, 4]),  # of .1, .6, .2 and .5 radians
        ([0, 0, 0, 0, 0], 0.25, [0, 2]),
        ([0, 0, 0, 0, 0], 0.75, [0, 2, 3, 4]),
        ([0, 1, 1, 2, 2], 0.5, [0, 2, 4]),  # one of each structure, as `even` has: 1 and 2
        ([0, 2, 2, 1, 1], 0.25, [0, 4]),  # `even` keeps the last, so one of its structure stays
        ([0, 2, 1, 2, 1], 0.25, [0, 2]),
        ([0, 1, 1, 2, 2], 0.0, [0]),
    ],
)
def test_the_blocks_that_change_their_input_least_go(
    kinds: list[int], depth: float, stay: list[int]
) -> None:
    tower = turning([0.3, 0.1, 0.6, 0.2, 0.5], kinds)
    before = blocks(tower)[0]
    pixels = torch.rand(4, 3, *SHAPE[1:]) * torch.tensor([1.0, 1.0, 0.0]).view(3, 1, 1)
    leave_out(tower, SHAPE, depth=depth, rule="least_change", inputs=pixels)
    assert blocks(tower)[0] == [before[i] for i in stay]
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in before)


def test_the_change_of_a_block_is_one_minus_the_cosine() -> None:
    tower = turning([0.3, 0.1, 0.6], [0, 0, 0])
    pixels = torch.rand(4, 3, *SHAPE[1:]) * torch.tensor([1.0, 1.0, 0.0]).view(3, 1, 1)
    found = _changes(tower, find_rows(tower, SHAPE), pixels)
    expected = {("rows.0", (1,)): 1 - math.cos(0.1), ("rows.0", (2,)): 1 - math.cos(0.6)}
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("depth", [0.3, 0.5, 0.8])
def test_the_choice_by_change_does_not_alter_the_architecture(depth: float) -> None:
    """Its price and its file are known without weights."""
    shapes = []
    for inputs, rule in ((torch.rand(3, 3, 64, 64), "least_change"), (None, "even")):
        thin = bare(library("timm:mobilenetv3_small_050"))
        leave_out(thin, (3, 64, 64), depth=depth, rule=rule, inputs=inputs)
        shapes.append({name: value.shape for name, value in thin.state_dict().items()})
    assert shapes[0] == shapes[1]


def test_alternating_blocks_go_in_pairs() -> None:
    tower = Tower([Block(3, shift=i % 2) for i in range(6)], [Block(3), Block(3, shift=1)])
    assert find_rows(tower, SHAPE) == [Row(container="rows.0", units=((2, 3), (4, 5)))]


def test_a_network_is_left_in_its_mode_and_without_hooks() -> None:
    tower = two_rows().train()
    tower.rows[0].eval()
    find_rows(tower, SHAPE)
    assert tower.training
    assert not tower.rows[0].training
    assert all(not part._forward_hooks for part in tower.modules())
    assert all(part.norm.num_batches_tracked == 0 for row in blocks(tower) for part in row)


def test_a_network_without_such_blocks_is_refused() -> None:
    with pytest.raises(SpecError, match="no blocks that can be left out"):
        leave_out(Tower([Block(3, 2)]), SHAPE, depth=0.5, rule="last")


def library(family: str, side: int = 64, **knobs: Value) -> nn.Module:
    spec = StudentSpec(family=family, knobs=knobs)
    return build(spec, in_channels=3, num_classes=5, data_size=side)


@pytest.mark.parametrize(
    ("family", "least"),  # blocks that stay at depth 0
    [("timm:resnet18", 4), ("torchvision:mobilenet_v2", 7), ("timm:test_vit", 1)],
)
def test_depth_zero_keeps_one_block_a_row(family: str, least: int) -> None:
    full, thin = bare(library(family)), bare(library(family, depth=0.0))
    rows = find_rows(full, (3, 64, 64))
    with pytest.raises(SpecError, match="no blocks"):
        leave_out(thin, (3, 64, 64), depth=0.0, rule="last")
    assert len(rows) <= least
    gone = {f"{row.container}.{i}." for row in rows for unit in row.units for i in unit}
    left = sum(p.numel() for n, p in full.named_parameters() if not n.startswith(tuple(gone)))
    assert sum(p.numel() for p in thin.parameters()) == left


def test_a_price_is_the_count_by_hand() -> None:
    """ResNet-18 at depth 0 lacks the second block of each stage: two 3x3 convolutions, two norms.

    At 32 px the maps of its stages have sides of 8, 4, 2 and 1; a norm counts 2 a value.
    """
    full, thin = (
        count(library("timm:resnet18", 32, depth=depth), input_shape=(3, 32, 32))
        for depth in (1.0, 0.0)
    )
    stages = ((64, 8), (128, 4), (256, 2), (512, 1))
    flops = sum(2 * (9 * width**2 + 2 * width) * side**2 for width, side in stages)
    params = sum(2 * (9 * width**2 + 2 * width) for width, _ in stages)
    assert (full[0] - thin[0], full[1] - thin[1]) == (flops, params)


@pytest.mark.parametrize("family", ["timm:test_resnet", "torchvision:mobilenet_v2"])
def test_a_cut_network_computes_the_whole_ones_stage(family: str) -> None:
    whole, cut = library(family).eval(), library(family, cut=2).eval()
    names = {f"module.{name}" for name in bare(whole).state_dict()}
    state = {f"module.body.{n.removeprefix('module.')}": v for n, v in whole.state_dict().items()}
    own = cut.state_dict()
    assert {n.replace(".body", "") for n in own if ".head." not in n} < names
    cut.load_state_dict({n: state.get(n, v) for n, v in own.items()})
    x = torch.rand(2, 3, 64, 64)
    expected = whole.features(x).stages[1]
    assert torch.equal(cut.features(x).stages[-1], expected)
    assert torch.allclose(cut.features(x).embedding, expected.mean(dim=(2, 3)))
