"""The averaged weights follow the weights by the share of a step, each tensor once."""

from __future__ import annotations

import torch
from torch import nn

from kdsearch.models.model import Model, Preprocess
from kdsearch.training.ema import ModelEma


def test_a_tied_weight_moves_once_a_step() -> None:
    """From 0 towards 1 by a tenth: 0.1; moved twice it would be 0.19."""
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    network[1].weight = network[0].weight
    nn.init.zeros_(network[0].weight)
    model = Model("tied", network, Preprocess(mean=(0.5,), std=(0.5,), resolution=1, channels=1))
    average = ModelEma(model, decay=0.9)
    with torch.no_grad():
        network[0].weight.fill_(1.0)
        network[2].num_batches_tracked.fill_(7)
        network[2].running_mean.fill_(2.0)
    average.update(torch.tensor(0.1))
    held = average.model.state_dict()
    for name, value in (("0.weight", 0.1), ("1.weight", 0.1), ("2.running_mean", 0.2)):
        torch.testing.assert_close(
            held[f"network.{name}"], torch.full_like(held[f"network.{name}"], value)
        )
    assert held["network.2.num_batches_tracked"] == 7
