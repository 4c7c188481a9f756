"""The same search as a good user of Optuna writes it, from its documentation and PyTorch's.

TPE on SQLite; a DataLoader whose two workers live as long as the study (torchvision's v2 on uint8
tensors, the faster of the two kinds in `input_pipeline`); the teacher asked in every step; the
loop written out; FLOPs by fvcore. Students, losses and the average's decay are the package's, so
that both sides train the same. Images are normalised once, the teacher's way, for both networks;
those of validation are kept normalised. What costs time is marked for a stopwatch, 2 us a mark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import optuna
import torch
from optuna.samplers import TPESampler
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.optim.swa_utils import PARAM_LIST, AveragedModel
from torch.utils.data import DataLoader

from benchmarks.input_pipeline import WORKERS, Pair, Tensors
from benchmarks.stopwatch import Stopwatch
from kdsearch.deploy.pricing import build_student
from kdsearch.models.features import Tapped
from kdsearch.models.model import EVAL_BATCH, Model
from kdsearch.spec import Candidate, TrainSpec
from kdsearch.trials.trial import TrialContext, build_distiller

Propose: TypeAlias = Callable[[optuna.Trial], Candidate]
OnTrial: TypeAlias = Callable[[optuna.Study, optuna.trial.FrozenTrial], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What the trials of a study share. val: batches of normalised images and labels."""

    context: TrialContext
    train: DataLoader[tuple[Tensor, int]]
    val: Sequence[Pair]
    clock: Stopwatch

    @property
    def teacher(self) -> Tapped:
        """Return the one teacher's network."""
        network = self.context.teachers[0].network
        assert isinstance(network, Tapped)
        return network


def setting(
    context: TrialContext, *, batch_size: int, clock: Stopwatch, workers: int = WORKERS
) -> Setting:
    """Return loaders of the bench's images."""
    data, shown = context.data, context.teachers[0].preprocess
    loader = DataLoader(
        Tensors(data.train, mean=shown.mean, std=shown.std),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    images, labels = shown(data.val.at(slice(None))), data.val.labels
    val = list(zip(*(torch.split(part, EVAL_BATCH) for part in (images, labels)), strict=True))
    return Setting(context=context, train=loader, val=val, clock=clock)


def create_study(database: Path, *, seed: int) -> optuna.Study:
    """Return an empty study of accuracy against FLOPs."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=f"sqlite:///{database}",
        sampler=TPESampler(seed=seed),
        directions=["maximize", "minimize"],
    )


def search(
    study: optuna.Study,
    propose: Propose,
    on: Setting,
    *,
    n_trials: int,
    prices_first: bool,
    callbacks: Sequence[OnTrial] = (),
) -> None:
    """Run trials. prices_first: reject students over the budget, else train them."""
    limit = on.context.budget.flops
    assert limit is not None

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        candidate = propose(trial)
        with on.clock("building"):
            student = build_student(candidate.student, on.context.data)
        with on.clock("FLOPs"):
            cost = flops(student)
        trial.set_constraint("flops", cost / limit - 1)
        if prices_first and cost > limit:
            raise optuna.TrialPruned
        return train(candidate, student, on), cost

    with on.clock("scheduling"):
        study.optimize(objective, n_trials=n_trials, callbacks=callbacks)


def flops(student: Model) -> int:
    """Return fvcore's count for one image."""
    from fvcore.nn import (
        FlopCountAnalysis,  # kdsearch.deploy.flops knows what a first import warns of
    )

    image = torch.zeros(1, *student.preprocess.input_shape)
    analysis = FlopCountAnalysis(student.network.eval(), image)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return int(analysis.total())


def train(candidate: Candidate, student: Model, on: Setting) -> float:
    """Distil a student and return its accuracy on validation after the last epoch."""
    spec, clock, network, teacher = candidate.train, on.clock, student.network, on.teacher
    assert on.train.batch_size == spec.batch_size
    with clock("building"):
        distiller = build_distiller(candidate, student, on.context)
        optimizer = _optimizer([*network.parameters(), *distiller.parameters()], spec)
        steps = spec.epochs * len(on.train)
        schedule = CosineAnnealingLR(optimizer, steps)
        average = averaged(network, spec.ema)
    step, found = 0, 0.0
    for _ in range(spec.epochs):
        network.train()
        for images, target in clock.each("input", on.train):
            heard = []
            if distiller.needs_teacher:
                with clock("teacher"), torch.no_grad():
                    heard = [teacher.features(images, attention=False)]
            with clock("student"):
                outputs = network.features(images)  # type: ignore[operator]
            with clock("losses"):
                loss = distiller(outputs, heard, target, pace=distiller.pace(step / steps))["loss"]
            with clock("optimiser"):
                optimizer.zero_grad()
            with clock("backward"):
                loss.backward()
            with clock("optimiser"):
                optimizer.step()
                schedule.step()
                average.update_parameters(network)
            step += 1
        with clock("validation"):
            found = _accuracy(average, on.val)
    return found


def _optimizer(weights: Sequence[nn.Parameter], spec: TrainSpec) -> torch.optim.Optimizer:
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(weights, lr=spec.lr, weight_decay=spec.weight_decay)
    assert spec.optimizer == "sgd"
    return torch.optim.SGD(
        weights, lr=spec.lr, momentum=0.9, nesterov=True, weight_decay=spec.weight_decay
    )


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """Return torch's averaged copy; its decay rises to `decay` as the package's does."""

    def move(averages: PARAM_LIST, weights: PARAM_LIST, seen: Tensor | int) -> None:
        if averages[0].is_floating_point():
            kept = min(decay, (1 + int(seen)) / (10 + int(seen)))
            torch._foreach_lerp_(averages, weights, 1 - kept)
        else:
            torch._foreach_copy_(averages, weights)

    average = AveragedModel(network, multi_avg_fn=move, use_buffers=True)
    average.update_parameters(network)  # the first one copies
    return average.eval()


@torch.no_grad()
def _accuracy(network: nn.Module, batches: Sequence[Pair]) -> float:
    hits = sum(int((network(images).argmax(1) == labels).sum()) for images, labels in batches)
    return hits / sum(len(labels) for _, labels in batches)
