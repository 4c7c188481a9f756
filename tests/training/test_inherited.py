"""What a student inherited keeps its rates, its statistics and its best epoch."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from toy_data import CPU, distiller_for, tiny_model, toy_data
from toy_trial import SMALL

from kdsearch import tasks
from kdsearch.deploy.pricing import build_student
from kdsearch.errors import SpecError
from kdsearch.models.features import Tapped
from kdsearch.models.model import Model, Preprocess
from kdsearch.spec import DistillSpec, StudentSpec
from kdsearch.tasks.classification import Classification
from kdsearch.train_spec import OPTIMIZERS, TrainSpec
from kdsearch.training.checkpoint import Checkpoint
from kdsearch.training.ema import Kept
from kdsearch.training.inherited import rates_of, stages_of
from kdsearch.training.optimizers import Optimizers
from kdsearch.training.step import Session
from kdsearch.training.trainer import Epoch, curve_of, train
from kdsearch.training.validation import evaluate

DATA = toy_data()
SPEC = TrainSpec(epochs=4, batch_size=16, lr=0.01, ema=0.9)
PLAIN = DistillSpec(method="none")
HEAD = {"module.7.weight", "module.7.bias"}


def inherited(*, head: bool = False) -> Model:
    """Return a network in which all but the head comes from another one."""
    model = tiny_model(3)
    names = {name for name, _ in model.network.named_parameters()}
    model.inherited = frozenset(names if head else names - HEAD)
    return model


def trained(
    model: Model,
    spec: TrainSpec = SPEC,
    checkpoint: Checkpoint | None = None,
    *,
    pause_at: int | None = None,
) -> list[Epoch]:
    session = Session(data=DATA, spec=spec, seed=0, view_seed=7, device=CPU)
    torch.manual_seed(0)
    distiller = distiller_for(PLAIN, model)
    return train(model, distiller, session, checkpoint=checkpoint, pause_at=pause_at)


def changed_by(model: Model, spec: TrainSpec) -> set[str]:
    """Train, and return the names of what is no longer as it was."""
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    trained(model, spec)
    after = model.network.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_a_parameter_belongs_to_the_stage_that_it_works_in() -> None:
    """tiny_model has maps of 8, 4 and 2 pixels; its head follows the last."""
    stages = stages_of(tiny_model())
    assert {stages[f"module.{place}.weight"] for place in (0, 1)} == {0}
    assert (stages["module.3.weight"], stages["module.7.weight"]) == (1, 3)


def test_the_stages_of_a_family_are_in_its_order() -> None:
    student = build_student(SMALL, DATA)
    stages = stages_of(student)
    assert stages.keys() == dict(student.network.named_parameters()).keys()
    assert [*stages.values()] == sorted(stages.values())
    last = max(stages.values())
    assert last == len(student.example(DATA.train.at(slice(2))).stages)
    assert {name for name, stage in stages.items() if stage == last} >= {"head.weight"}


@pytest.mark.parametrize("family", ["resnet", "timm:mobilenetv3_small_100"])
@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_a_body_under_a_head_has_stages_and_the_head_follows_them(family: str, task: str) -> None:
    knobs = {"width": 0.25, "depth": 4} if family == "resnet" else {}
    spec = StudentSpec(family=family, knobs=knobs)
    network = tasks.get(task)(["a", "b"]).network(spec, channels=3, size=(64, 96))
    shown = Preprocess(mean=(0.0,) * 3, std=(1.0,) * 3, resolution=(64, 96), channels=3)
    stages = stages_of(Model("body", network, shown))
    assert stages.keys() == dict(network.named_parameters()).keys()
    last = max(stages.values())
    assert last >= 4
    assert {name for name, stage in stages.items() if stage == last} >= {
        name for name in stages if name.startswith("head.")
    }
    first = next(iter(stages))
    assert not first.startswith("head.")
    assert stages[first] == 0


def test_rates_fall_by_a_factor_per_stage_towards_the_input() -> None:
    model = inherited()
    rates = rates_of(model, replace(SPEC, inherited_lr=0.1, layer_decay=0.5))
    layers = model.network.module
    assert rates[layers[0].weight] == pytest.approx(0.1 * 0.5**3)
    assert rates[layers[3].weight] == pytest.approx(0.1 * 0.5**2)
    assert layers[7].weight not in rates
    assert rates_of(tiny_model(), replace(SPEC, inherited_lr=0.1)) == {}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_is_shorter_by_the_factor_of_its_rate(name: str) -> None:
    spec = replace(SPEC, optimizer=name, weight_decay=0.0, warmup=0.0)
    moves = []
    for factor in (1.0, 0.25):
        model = tiny_model()
        weights = dict(model.network.named_parameters())
        factors = {weights[f"module.{place}.weight"]: factor for place in (0, 1, 3)}
        optimizers = Optimizers(model, nn.Identity(), spec, 10, factors)
        before = {n: weight.detach().clone() for n, weight in weights.items()}
        for rate in (0.5, 0.01):  # a step reads the rate that is written before it
            optimizers.rate.fill_(rate)
        torch.manual_seed(0)
        for weight in weights.values():
            weight.grad = torch.randn_like(weight)
        optimizers.step()
        moves.append({n: weight.detach() - before[n] for n, weight in weights.items()})
    for name, move in moves[0].items():
        factor = 0.25 if name in {f"module.{place}.weight" for place in (0, 1, 3)} else 1.0
        torch.testing.assert_close(moves[1][name], factor * move, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize(("bn", "is_still"), [("auto", True), ("frozen", True), ("moving", False)])
def test_inherited_statistics_move_only_where_the_recipe_says_so(bn: str, is_still: bool) -> None:
    changed = changed_by(inherited(), replace(SPEC, bn=bn, keep="last"))
    assert ("module.1.running_mean" not in changed) == is_still
    assert {"module.1.weight", "module.0.weight", *HEAD} <= changed


def test_statistics_from_scratch_always_move() -> None:
    assert "module.1.running_mean" in changed_by(tiny_model(), replace(SPEC, bn="frozen"))


@pytest.mark.parametrize(
    ("stages", "frozen"),
    [
        (0, set()),
        (1, {"module.0.weight", "module.1.weight", "module.1.bias"}),
        (-1, {"module.0.weight", "module.1.weight", "module.3.weight", "module.3.bias"}),
    ],
)
def test_frozen_stages_stay_as_they_are(stages: int, frozen: set[str]) -> None:
    spec = replace(SPEC, frozen_stages=stages, keep="last", bn="moving")
    changed = changed_by(inherited(), spec)
    assert not changed & frozen
    assert changed >= HEAD
    assert ("module.1.running_mean" in changed) == (stages == 0)


def test_an_inherited_head_is_trained_in_a_frozen_trunk() -> None:
    assert changed_by(inherited(head=True), replace(SPEC, frozen_stages=-1, keep="last")) == HEAD


def test_a_network_with_nothing_left_to_train_is_refused() -> None:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Softmax(1))
    tapped = Tapped(layers, in_channels=1, resolution=8)
    model = Model("all", tapped, tiny_model().preprocess)
    model.inherited = frozenset(name for name, _ in tapped.named_parameters())
    with pytest.raises(SpecError, match="nothing is left to train"):
        rates_of(model, replace(SPEC, frozen_stages=-1))


def test_epoch_0_is_the_fitted_head_on_what_was_inherited() -> None:
    epochs = trained(inherited())
    fresh = trained(inherited(), replace(SPEC, head="fresh"))
    assert [epoch.number for epoch in epochs] == [0, 1, 2, 3, 4]
    assert epochs[0].val > 0.9 > fresh[0].val
    assert epochs[0].losses == {}
    assert [epoch.number for epoch in trained(tiny_model())] == [1, 2, 3, 4]


@pytest.mark.parametrize("keep", ["auto", "best", "last"])
def test_what_is_returned_is_what_was_measured(keep: str) -> None:
    model = inherited()
    epochs = trained(model, replace(SPEC, lr=0.5, clip=1.0, keep=keep))
    own = [epoch.val if epoch.own is None else epoch.own for epoch in epochs]
    assert evaluate(model, DATA.val, Classification(), CPU) == epochs[-1].val
    if keep == "last":
        assert curve_of(epochs) == tuple(own[1:])
    else:
        assert curve_of(epochs) == tuple(max(own[: place + 1]) for place in range(1, 5))


def test_of_equal_epochs_the_later_is_kept() -> None:
    model = tiny_model()
    kept = Kept(model, is_best=True)
    for value, number in ((0.5, 0), (0.7, 1), (0.6, 2), (0.7, 3), (0.1, 4)):
        torch.nn.init.constant_(model.network.module[0].weight, number)
        kept.offer(value)
    assert kept.value == 0.7
    assert set(kept.weights()["network.module.0.weight"].flatten().tolist()) == {3.0}
    again = Kept(tiny_model(), is_best=True)
    again.restore(kept.state())
    assert again.value == 0.7
    assert torch.equal(
        again.weights()["network.module.0.weight"], kept.weights()["network.module.0.weight"]
    )


def test_from_scratch_the_last_epoch_is_kept_unless_the_best_is_wanted() -> None:
    spec = replace(SPEC, lr=1.0, clip=0.0, epochs=6)
    best, last = tiny_model(), tiny_model()
    own = [epoch.val for epoch in trained(last, spec)]
    curve = [epoch.val for epoch in trained(best, replace(spec, keep="best"))]
    assert curve == [max(own[: place + 1]) for place in range(6)]
    assert evaluate(last, DATA.val, Classification(), CPU) == own[-1]
    assert evaluate(best, DATA.val, Classification(), CPU) == max(own)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_resumed_training_equals_one_in_a_piece(optimizer: str, tmp_path: Path) -> None:
    """With rates by stage, still statistics, a frozen stage and an earlier best epoch."""
    spec = replace(
        SPEC, optimizer=optimizer, lr=0.3, inherited_lr=0.2, layer_decay=0.5, clip=1.0, accumulate=2
    )
    whole, parts = inherited(), inherited()
    expected = trained(whole, spec)
    file = partial(Checkpoint, tmp_path / "it.pt", "it")
    trained(parts, spec, file(), pause_at=1)
    parts = inherited()
    trained(parts, spec, file(), pause_at=3)
    parts = inherited()
    resumed = trained(parts, spec, file())
    assert [replace(e, seconds=0.0) for e in resumed] == [replace(e, seconds=0.0) for e in expected]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name]), name
