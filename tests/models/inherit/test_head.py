"""A fresh head is fitted on frozen features: least loss, at any scale of the features."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from toy_data import CPU, tiny_model, toy_data

from kdsearch.models.features import Tapped
from kdsearch.models.inherit.head import best_linear, fit_head, has_fresh_head
from kdsearch.models.model import Model, batches
from kdsearch.tasks.classification import Classification
from kdsearch.training.validation import evaluate

DATA = toy_data()


def clouds(count: int = 90, width: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 3
    features = torch.randn(count, width, generator=generator)
    features[torch.arange(count), labels] += 2
    return features, labels


def test_no_other_layer_has_less_loss() -> None:
    """The gradient of loss + decay / 2 * |weight|^2 is 0; features have mean 0 and spread 1."""
    features, labels = clouds()
    features = (features - features.mean(0)) / features.std(0)
    weight, bias = best_linear(features, labels, F.cross_entropy, outputs=3, decays=(0.1,))
    weight.requires_grad_()
    bias.requires_grad_()
    loss = F.cross_entropy(features @ weight.T + bias, labels) + 0.05 * weight.square().sum()
    loss.backward()
    assert weight.grad.abs().max() < 1e-4
    assert bias.grad.abs().max() < 1e-4


def test_the_scale_and_the_place_of_features_change_no_answer() -> None:
    features, labels = clouds()
    weight, bias = best_linear(features, labels, F.cross_entropy, outputs=3)
    scale, place = torch.tensor([100.0, 1.0, 0.01, 10.0, 3.0]), torch.arange(5.0)
    moved = features * scale + place
    other, its_bias = best_linear(moved, labels, F.cross_entropy, outputs=3)
    expected = features @ weight.T + bias
    torch.testing.assert_close(moved @ other.T + its_bias, expected, atol=0.02, rtol=0.02)


def test_the_decay_is_the_one_that_suits_what_is_held_out() -> None:
    """Without a decay 60 features of noise fit 60 labels by heart."""
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(60, 60, generator=generator), torch.arange(60) % 2
    features[:, 0] += 4 * labels
    weak, strong = (
        best_linear(features, labels, F.cross_entropy, outputs=2, decays=(decay,))[0]
        for decay in (1e-4, 1.0)
    )
    chosen, _ = best_linear(features, labels, F.cross_entropy, outputs=2, decays=(1e-4, 1.0))
    assert weak.norm() > 3 * strong.norm()
    torch.testing.assert_close(chosen, strong, atol=0.02, rtol=0.02)


def test_a_fitted_head_reads_features_that_nothing_was_trained_for() -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chance = evaluate(model, DATA.val, Classification(), CPU)
    assert fit_head(model, batches(DATA.train, CPU), F.cross_entropy)
    assert evaluate(model, DATA.val, Classification(), CPU) > max(0.9, chance)
    changed = [n for n, value in model.state_dict().items() if not torch.equal(value, before[n])]
    assert changed == ["network.module.7.weight", "network.module.7.bias"]


def test_a_head_of_two_layers_stays_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 3), nn.Softmax(1))
    shown = tiny_model().preprocess
    model = Model("deep", Tapped(layers, in_channels=1, resolution=8), shown)
    before = [value.clone() for value in model.parameters()]
    with caplog.at_level("INFO"):
        assert not fit_head(model, batches(DATA.train, CPU), F.cross_entropy)
    assert all(map(torch.equal, before, model.parameters()))
    assert "not one linear layer" in caplog.text


def test_only_what_inherits_a_body_without_a_head_has_a_fresh_head() -> None:
    model = tiny_model()
    assert not has_fresh_head(model)
    names = frozenset(name for name, _ in model.network.named_parameters())
    model.inherited = names
    assert not has_fresh_head(model)
    model.inherited = names - {"module.7.weight", "module.7.bias"}
    assert has_fresh_head(model)
