"""What decays, what Muon takes, and how the rate moves."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from toy_data import CPU, distiller_for, tiny_model, tiny_network, toy_data

from kdsearch.models import students
from kdsearch.models.model import Model, Preprocess
from kdsearch.spec import DistillSpec, StudentSpec, TrainSpec
from kdsearch.tasks.classification import Classification
from kdsearch.tasks.segmentation import Segmentation
from kdsearch.train_spec import OPTIMIZERS
from kdsearch.training.optimizers import Optimizers, _matrices, _warm_cosine
from kdsearch.training.step import Session
from kdsearch.training.trainer import train
from kdsearch.training.validation import evaluate

SPEC = TrainSpec(epochs=4, batch_size=16, lr=0.05, ema=0.9)
PLAIN = DistillSpec(method="none")


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_gains_and_biases_are_not_decayed(name: str, kind: type) -> None:
    model = tiny_model()
    spec = replace(SPEC, optimizer=name, weight_decay=0.3)
    (optimizer,) = Optimizers(model, distiller_for(PLAIN, model), spec, 10).parts
    assert type(optimizer) is kind
    decayed, plain = optimizer.param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    # Two convolutions and a linear layer; a gain, a shift and two biases.
    assert [weight.ndim for weight in decayed["params"]] == [4, 4, 2]
    assert [weight.ndim for weight in plain["params"]] == [1, 1, 1, 1]


def test_frozen_weights_are_not_optimised() -> None:
    model = tiny_model()
    model.network.module[0].requires_grad_(False)
    assert len(Optimizers(model, torch.nn.Identity(), SPEC, 10).weights) == 6


def test_muon_takes_the_matrices_between_first_and_last_layer_and_adamw_the_rest() -> None:
    model = tiny_model()
    spec = replace(SPEC, optimizer="muon")
    rest, muon = Optimizers(model, torch.nn.Identity(), spec, 10).parts
    assert type(rest) is torch.optim.AdamW
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(16, 8 * 9)]
    assert sum(len(group["params"]) for group in rest.param_groups) == 6


class HeadFirst(nn.Module):
    """Its head, a token and a position stand before its stem; a depthwise convolution is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(8, 3) for _ in range(2))
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.positions = nn.Parameter(torch.zeros(1, 17, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.stem = nn.Conv2d(1, 8, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.stem(x)).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], dim=1) + self.positions
        x = self.attention(x, x, x)[0]
        first, second = (head(x[:, i]) for i, head in enumerate(self.heads))
        return first + second


def as_model(network: nn.Module) -> Model:
    preprocess = Preprocess(mean=(0.35,), std=(0.3,), resolution=8, channels=1)
    return Model("own", network, preprocess)


def taken(model: Model) -> set[str]:
    names = {id(weight): name for name, weight in model.network.named_parameters()}
    return {names[id(weight)] for weight in _matrices(model)}


def test_muon_takes_layers_by_what_they_do_and_not_by_their_place() -> None:
    network = HeadFirst()
    flags = [part.training for part in network.modules()]
    assert taken(as_model(network)) == {"attention.in_proj_weight", "attention.out_proj.weight"}
    assert [part.training for part in network.modules()] == flags


@pytest.mark.parametrize("family", ["convnext", "deit", "mobilenet", "resnet", "vit"])
def test_muon_takes_all_inner_matrices_of_a_family(family: str) -> None:
    spec = StudentSpec(family=family)
    network = students.build(spec, in_channels=1, num_classes=3, data_size=8)
    outer = {"resnet": {"stem.0.weight"}, "vit": {"patches.0.weight"}, "deit": {"patches.0.weight"}}
    outer = outer.get(family, {"stem.0.weight"})
    inner = {
        name
        for name, weight in network.named_parameters()
        if weight.ndim > 1 and weight.shape[1] > 1 and "head" not in name and name != "prefix"
    }
    assert taken(as_model(network)) == inner - outer


@pytest.mark.parametrize("kind", ["fpn", "lraspp"])
def test_muon_takes_the_inner_matrices_of_a_segmenter(kind: str) -> None:
    knobs = {"width": 0.25, "depth": 4, "head.kind": kind, "head.channels": 16}
    task, spec = Segmentation(("a", "b", "c")), StudentSpec(family="resnet", knobs=knobs)
    network = task.network(spec, channels=1, size=(32, 32))
    preprocess = Preprocess(mean=(0.35,), std=(0.3,), resolution=32, channels=1)
    found = taken(Model("own", network, preprocess))
    assert any(name.startswith("stages.") for name in found)
    weights = dict(network.named_parameters())
    assert all(len(weights[name]) != len(task.classes) for name in found)
    assert found < set(weights)


def test_muon_takes_a_weight_once_and_never_a_head_that_is_tied_to_an_inner_layer() -> None:
    network = tiny_network(width=3)
    network = nn.Sequential(*network[:-1], *(nn.Linear(24, 24) for _ in range(3)), nn.Linear(24, 3))
    network[-3].weight = network[-4].weight
    network[-2].weight = nn.Parameter(network[-2].weight.detach(), requires_grad=False)
    assert taken(as_model(network)) == {"3.weight", f"{len(network) - 4}.weight"}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("is_capturing", [False, True])
def test_a_step_may_be_captured_and_warns_of_nothing_where_it_is_not(
    name: str, is_capturing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch reports a GPU and what its stream does, since there is none here."""
    stream = SimpleNamespace(is_capturing=lambda: is_capturing)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_stream", lambda: stream)
    model = tiny_model()
    optimizers = Optimizers(model, torch.nn.Identity(), replace(SPEC, optimizer=name), 10)
    before = [weight.detach().clone() for weight in model.parameters()]
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    optimizers.step()
    assert not any(map(torch.equal, before, model.parameters()))


def test_a_step_of_muon_is_an_orthogonal_matrix_of_the_length_of_adamws() -> None:
    """match_rms_adamw: 0.2 * sqrt(max(A, B)) * lr * U V^T, with singular values near 1."""
    model = tiny_model()
    spec = TrainSpec(optimizer="muon", lr=0.01, weight_decay=0.0, warmup=0.0)
    optimizers = Optimizers(model, torch.nn.Identity(), spec, 10)
    weight = model.network.module[3].weight
    before = weight.detach().clone()
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizers.step()
    moved = (weight.detach() - before).flatten(1) / (0.01 * 0.2 * 72**0.5)
    singular = torch.linalg.svdvals(moved)
    assert ((singular > 0.6) & (singular < 1.3)).all()
    aligned = torch.linalg.svd(weight.grad.flatten(1), full_matrices=False)
    cosine = -(moved * (aligned.U @ aligned.Vh)).sum() / moved.norm() / 4
    assert cosine > 0.95


def test_muon_learns_and_repeats_itself() -> None:
    data = toy_data()
    spec = TrainSpec(epochs=4, batch_size=16, optimizer="muon", lr=0.01, ema=0.9)
    session = Session(data=data, spec=spec, seed=0, view_seed=7, device=CPU)
    models = [tiny_model(), tiny_model()]
    curves = [train(model, distiller_for(PLAIN, model), session) for model in models]
    assert [e.losses for e in curves[0]] == [e.losses for e in curves[1]]
    assert evaluate(models[0], data.test, Classification(), CPU) > 0.9


def test_the_schedule_rises_to_one_and_falls_to_zero() -> None:
    # 100 steps, 10 of warm-up: 1/10 at step 0, 1 at steps 9 and 10, 1/2 half way down, 0 at 100.
    factor = _warm_cosine(100, 0.1)
    assert [factor(0), factor(4), factor(9), factor(10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert factor(55) == pytest.approx(0.5)
    assert factor(100) == pytest.approx(0.0)
    values = [factor(step) for step in range(101)]
    assert values[:10] == sorted(values[:10])
    assert values[10:] == sorted(values[10:], reverse=True)


def test_the_schedule_without_warm_up_starts_at_one() -> None:
    factor = _warm_cosine(50, 0.0)
    assert factor(0) == 1.0
    assert factor(50) == pytest.approx(0.0)
    assert _warm_cosine(1, 0.9)(0) == 1.0
