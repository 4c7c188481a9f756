"""Train a teacher on the spot: `auto` without weights from scratch, or another by fine-tuning.

A trained teacher is cached under all that decides the training, for the next study.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, replace
from pathlib import Path

import torch

from kdsearch import tasks
from kdsearch.data.base import ImageData
from kdsearch.deploy.device_lock import DeviceLock
from kdsearch.deploy.pricing import build_student
from kdsearch.digests import digest_of
from kdsearch.errors import SpecError
from kdsearch.models.checkpoints import Note
from kdsearch.models.model import Model
from kdsearch.models.weights import fit_weights, read_weights, save_weights
from kdsearch.registry import sources_of
from kdsearch.spec import DistillSpec, TrainSpec
from kdsearch.training.autotune import Executions
from kdsearch.training.distiller import Distiller, Side
from kdsearch.training.step import Execution, Session
from kdsearch.training.trainer import OnEpoch, train

_log = logging.getLogger(__name__)
# Inherited weights move at 2e-4: on TrashNet 1e-4 to 3e-4 with frozen statistics was best.
_FINE_TUNE = TrainSpec(
    epochs=3,
    batch_size=32,
    optimizer="adamw",
    lr=5e-4,
    inherited_lr=0.4,
    weight_decay=0.05,
    ema=0.99,
)


def build_auto(data: ImageData) -> Model:
    """Return the untrained network of `auto`, on the CPU."""
    spec = tasks.of(data).auto_teacher
    model = build_student(spec, data)
    teacher = Model("auto", model.network, model.preprocess)
    teacher.architecture = spec
    return teacher


def train_teacher(
    model: Model,
    data: ImageData,
    epochs: int | None,
    *,
    cache_dir: Path,
    seed: int,
    device: torch.device,
    on_epoch: OnEpoch | None = None,
    note: Note = lambda text: None,
) -> Model:
    """Train a teacher without distillation, or load it from the cache; return it frozen.

    `auto` without weights is trained from scratch, others are fine-tuned; on a GPU with the steps
    that are fastest there. epochs: None for those of the recipe.
    """
    recipe = tasks.of(data).auto_recipe if model.name == "auto" else _FINE_TUNE
    recipe = recipe if epochs is None else replace(recipe, epochs=epochs)
    cached = cache_dir / "teachers" / f"{_key(model, recipe, data, seed)}.safetensors"
    if cached.is_file():
        try:
            fit_weights(model, read_weights(cached), where=f"teacher cache {cached.name}")
        except SpecError as error:
            _log.warning("%s; training this teacher again", error)
        else:
            return model.to(device).freeze()
    note(f"Training the teacher for {recipe.epochs} epoch{'s' * (recipe.epochs > 1)}")
    distiller = Distiller(
        DistillSpec(method="none"),
        task=tasks.of(data),
        student=Side(
            outputs=model.example(data.train.at(slice(2))), resolution=model.preprocess.resolution
        ),
        label_smoothing=recipe.label_smoothing,
    )
    lock, form = DeviceLock(str(device)), Execution()
    if device.type == "cuda":  # on a CPU the choice, by the clock, would make a teacher differ
        with lock.exclusive():
            form = Executions(cache_dir).fastest(model, data, device)
    with lock.shared() as step_lock:
        session = Session(
            data=data,
            spec=recipe,
            seed=seed,
            view_seed=seed,
            device=device,
            execution=form,
            step_lock=step_lock,
        )
        train(model, distiller, session, on_epoch=on_epoch)
    save_weights(model, cached)
    return model.freeze()


def _key(model: Model, recipe: TrainSpec, data: ImageData, seed: int) -> str:
    """Return a digest of all that decides a training: initial weights, recipe, images, seed."""
    content = hashlib.sha256(sources_of([model.name]).encode())
    for tensor in [*model.state_dict().values(), data.train.labels]:
        content.update(tensor.numpy().tobytes())
    return digest_of([model.name, asdict(recipe), data.key, content.hexdigest(), seed])
