"""The layers of a network: their costs are those of the whole, whatever the kind of network."""

from __future__ import annotations

import pytest
from torch import nn

from kdsearch.deploy.flops import count
from kdsearch.deploy.layers import MOST, layers
from kdsearch.models import students
from kdsearch.spec import StudentSpec
from kdsearch.tasks.base import Task
from kdsearch.tasks.detection import Detection
from kdsearch.tasks.segmentation import Segmentation

SHAPE = (3, 32, 32)


NAMES = ("resnet", "mobilenet", "convnext", "vit", "timm:mobilenetv3_small_050")
DENSE = (Segmentation, Detection)


def _network(kind: str | type[Task]) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return a student and the shape of its image."""
    if isinstance(kind, str):
        spec = StudentSpec(family=kind)
        return students.build(spec, in_channels=3, num_classes=4, data_size=SHAPE[1]), SHAPE
    spec = StudentSpec(family="resnet", knobs={"width": 0.25})
    return kind(("a", "b")).network(spec, channels=3, size=(64, 64)), (3, 64, 64)


@pytest.mark.parametrize("kind", [*NAMES, *DENSE])
def test_layers_add_up_to_the_network(kind: str | type[Task]) -> None:
    network, shape = _network(kind)
    rows = layers(network, shape)
    flops, params = count(network, input_shape=shape)
    assert sum(row.flops for row in rows) == flops
    assert sum(row.params for row in rows) == params
    assert 4 <= len(rows) <= MOST
    assert len({row.name for row in rows}) == len(rows)
    assert all(row.params or row.flops for row in rows)


def test_a_layer_has_its_own_cost_and_shape() -> None:
    """A 3x3 convolution from 3 to 8 channels on 32 x 32: 27 * 8 weights, each used 1024 times."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Flatten())
    (row,) = layers(network, SHAPE)
    assert (row.name, row.shape, row.params) == ("0", (8, 32, 32), 216)
    assert row.flops == 216 * 1024


def test_a_network_that_trains_still_does_after() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    layers(network, SHAPE)
    assert network.training
    assert int(network[1].num_batches_tracked) == 0
