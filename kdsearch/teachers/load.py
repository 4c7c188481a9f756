"""Load a teacher: any network, frozen, with the classes of the data.

A named network gets its weights and, with `epochs`, is fine-tuned: of a zero-shot teacher only the
image tower, since its head holds the text embeddings of the classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from kdsearch import tasks
from kdsearch.data.base import ImageData
from kdsearch.data.sizes import Size
from kdsearch.errors import SpecError
from kdsearch.models import students
from kdsearch.models.cifar_resnet import MEAN, STD
from kdsearch.models.features import Tapped
from kdsearch.models.model import Model, Preprocess
from kdsearch.models.weights import fit_weights, read_weights
from kdsearch.spec import StudentSpec
from kdsearch.teachers import previous_study
from kdsearch.teachers.auto import build_auto, train_teacher
from kdsearch.teachers.networks import Build, find_builder
from kdsearch.teachers.pretrained import find_pretrained, mark_inherited
from kdsearch.teachers.spec import TeacherSpec
from kdsearch.teachers.zero_shot import ZeroShot, open_clip_teacher
from kdsearch.training.trainer import OnEpoch


def load_teacher(
    spec: TeacherSpec,
    data: ImageData,
    *,
    cache_dir: Path,
    seed: int,
    device: torch.device,
    on_epoch: OnEpoch | None = None,
) -> Model:
    """Return the frozen teacher on `device`, trained first where the spec asks for it.

    Raises SpecError for an unknown name, for weights that are missing, damaged or do not fit, and
    for a head with other classes than the data without fine-tuning.
    """
    if not spec.is_trained_here:
        return _load(spec, data).to(device).freeze()
    torch.manual_seed(seed)
    return train_teacher(
        _start_of(spec, data),
        data,
        spec.epochs,
        cache_dir=cache_dir,
        seed=seed,
        device=device,
        on_epoch=on_epoch,
    )


def _start_of(spec: TeacherSpec, data: ImageData) -> Model:
    """Return what a teacher that is trained here starts from, on the CPU."""
    if spec.name != "auto":
        return mark_inherited(_load(spec, data), spec)
    found = find_pretrained(spec, data)
    if found is None:
        return build_auto(data)
    model = _load(replace(found, epochs=found.epochs or 1), data)  # its head is the data's
    shown = replace(model.preprocess, resolution=data.size)
    return mark_inherited(Model(found.name, model.network, shown), found)


def _load(spec: TeacherSpec, data: ImageData) -> Model:
    """Build a named teacher, load its weights and see that its classes are the data's."""
    kind, _, rest = spec.name.partition(":")
    if kind == "study" and rest:
        return _student(spec, previous_study.find_student(rest, data), data)
    if kind == "open_clip" and rest:
        network: nn.Module = open_clip_teacher(rest, spec.weights, data.classes)
    else:
        network = _network(spec, data)
    preprocess = _preprocess(spec.name, network, data)
    head = _head(network)
    if head is not None and head[1].out_features != data.num_classes:
        _replace_head(spec, network, head, data)
    tapped = Tapped(network, in_channels=preprocess.channels, resolution=preprocess.resolution)
    model = Model(spec.name, tapped, preprocess)
    if students.is_library(spec.name):
        model.architecture = StudentSpec(family=spec.name)
    classes = model.example(data.train.at(slice(2))).logits.shape[1]
    if classes != data.num_classes:
        raise SpecError(_other_classes(spec, classes, data))
    return model


def _student(spec: TeacherSpec, earlier: previous_study.SavedStudent, data: ImageData) -> Model:
    if earlier.classes != data.classes and spec.epochs is None:
        raise SpecError(
            f"--teacher {spec.name}: it tells apart {_listed(earlier.classes)}; the data "
            f"{data.name!r} has {_listed(data.classes)}; --teacher-epochs 5 fine-tunes it on these"
        )
    model = Model(spec.name, earlier.build(tasks.of(data)), earlier.preprocess)
    model.architecture = earlier.spec
    return model


def _listed(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:5]) + (", …" if classes[5:] else "")
    return f"{len(classes)} classes ({shown})"


def _network(spec: TeacherSpec, data: ImageData) -> nn.Module:
    """Return a library's or a user's network, its weights in it."""
    state = read_weights(Path(spec.weights)) if spec.weights else None
    build = find_builder(spec, data, has_weights=state is not None)
    network = build(None if state is None else _classes_in(build, state, data.num_classes))
    if state is not None:
        fit_weights(network, state, where=f"--teacher-weights {spec.weights}")
    return network


def _replace_head(
    spec: TeacherSpec, network: nn.Module, head: tuple[str, nn.Linear], data: ImageData
) -> None:
    name, linear = head
    if isinstance(network, ZeroShot):
        raise SpecError(
            f"--teacher {spec.name}: its head is {linear.out_features} texts and the data "
            f"{data.name!r} has {_listed(data.classes)}; embed one text a class, in this order"
        )
    if spec.epochs is None:
        raise SpecError(_other_classes(spec, linear.out_features, data))
    network.set_submodule(name, nn.Linear(linear.in_features, data.num_classes))


def _other_classes(spec: TeacherSpec, classes: int, data: ImageData) -> str:
    return (
        f"--teacher {spec.name}: its head has {classes} classes and the data {data.name!r} has "
        f"{data.num_classes}; --teacher-epochs 5 fine-tunes it on this data"
    )


def _head(network: nn.Module) -> tuple[str, nn.Linear] | None:
    """Return (name, module) of the last linear layer: the classifier, where it is linear."""
    linears = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Linear)]
    return linears[-1] if linears else None


def _classes_in(build: Build, state: Mapping[str, Tensor], expected: int) -> int:
    """Return the number of classes of the head in `state`."""
    head = _head(build(expected))
    weight = state.get(f"{head[0]}.weight") if head else None
    return len(weight) if weight is not None and weight.ndim == 2 else expected


def _preprocess(name: str, network: nn.Module, data: ImageData) -> Preprocess:
    """Return the preprocessing of the network: the one that it states, else the ImageNet constants.

    timm states it in `pretrained_cfg`; a factory's module may carry `mean`, `std`, `resolution`.
    """
    config = getattr(network, "pretrained_cfg", None) or {}
    size = config["input_size"][1] if "input_size" in config else _default_resolution(name, data)
    mean = tuple(getattr(network, "mean", config.get("mean", MEAN)))
    return Preprocess(
        mean=mean,
        std=tuple(getattr(network, "std", config.get("std", STD))),
        resolution=getattr(network, "resolution", size),
        channels=len(mean),
    )


def _default_resolution(name: str, data: ImageData) -> int | Size:
    if name.startswith("cifar_resnet"):
        return 32
    return 224 if name.startswith("torchvision:") else data.size
