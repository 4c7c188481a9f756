"""Get the teacher: any network, frozen, its classes those of the data.

`auto` trains one on the spot; every other name is built, its weights loaded, and fine-tuned only
when the user gives epochs. What was trained here is kept in the cache for the next study. Of a
zero-shot teacher the image tower alone is tuned: its head stays the texts of the classes.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeAlias
from urllib.error import URLError

import torch
from torch import Tensor, nn

from kdsearch import tasks
from kdsearch.data.base import ImageData
from kdsearch.deploy.device_lock import DeviceLock
from kdsearch.errors import SpecError, did_you_mean
from kdsearch.models.features import Tapped
from kdsearch.models.model import Model, Preprocess
from kdsearch.models.weights import fit_weights, read_weights, save_weights
from kdsearch.registry import import_object
from kdsearch.spec import DistillSpec, StudentSpec, TrainSpec, digest_of
from kdsearch.teachers import previous_study
from kdsearch.teachers.cifar_resnet import DEPTHS, MEAN, STD, CifarResNet
from kdsearch.teachers.zero_shot import ZeroShot, is_tag, open_clip_teacher
from kdsearch.training.distiller import Distiller, Side
from kdsearch.training.step import Session
from kdsearch.training.trainer import OnEpoch, train

KINDS = (
    "auto",
    "cifar_resnet{20,32,44,56,110}",
    "timm:NAME",
    "torchvision:NAME",
    "open_clip:MODEL",
    "study:FOLDER[#TRIAL]",
    "FILE.py:FACTORY",
)
AUTO_STUDENT = StudentSpec(family="resnet", knobs={"width": 1.0, "depth": 9})
# On digits, seeds 0, 1, 2: 99.7, 99.2 and 99.4 % on validation; batches of 64 at twice the rate
# without smoothing reach 98.3 % at seed 1 in the same time.
_SCRATCH = TrainSpec(epochs=20, batch_size=32, lr=0.05, label_smoothing=0.1, ema=0.99)
_FINE_TUNE = TrainSpec(optimizer="adamw", lr=5e-4, weight_decay=0.05, ema=0.99)

Build: TypeAlias = Callable[[int | None], nn.Module]


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherSpec:
    """Which teacher: a name (see KINDS), its weights, epochs of (fine-)tuning on the data.

    weights: a file, or the tag of an open_clip model's.
    """

    name: str = "auto"
    weights: str | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        if self.epochs is not None and self.epochs < 1:
            raise SpecError(f"--teacher-epochs {self.epochs}: expected at least 1")
        if self.name == "auto" and self.weights:
            raise SpecError(
                "--teacher-weights needs the network they belong to: give --teacher, one of "
                f"{', '.join(KINDS[1:])}"
            )
        if self.name.startswith("study:") and self.weights:
            raise SpecError(f"--teacher-weights: the student {self.name} has weights of its own")

    @property
    def is_trained_here(self) -> bool:
        """Whether this teacher is trained or fine-tuned by kdsearch."""
        return self.name == "auto" or self.epochs is not None

    @property
    def weights_file(self) -> Path | None:
        """The file that its weights are read from, if any. Raises SpecError for no such study."""
        if self.name.startswith("study:"):
            return previous_study.weights_file(self.name.removeprefix("study:"))
        is_tagged = self.name.startswith("open_clip:") and is_tag(self.weights or "")
        return Path(self.weights) if self.weights and not is_tagged else None


def load_teacher(
    spec: TeacherSpec,
    data: ImageData,
    *,
    cache_dir: Path,
    seed: int,
    device: torch.device,
    on_epoch: OnEpoch | None = None,
) -> Model:
    """Return the frozen teacher on `device`.

    Raises SpecError for an unknown name, for weights that are missing, damaged or do not fit, and
    for a head with other classes than the data when no epochs of fine-tuning are asked for.
    """
    if not spec.is_trained_here:
        return _load(spec, data).to(device).freeze()
    torch.manual_seed(seed)
    model = _auto(data) if spec.name == "auto" else _load(spec, data)
    recipe = _recipe(spec)
    kept = cache_dir / "teachers" / f"{_key(spec, recipe, model, data, seed)}.safetensors"
    if kept.is_file():
        fit_weights(model, read_weights(kept), where=f"teacher cache {kept.name}")
        return model.to(device).freeze()
    distiller = Distiller(
        DistillSpec(method="none"),
        task=tasks.of(data),
        student=Side(
            outputs=model.example(data.train.at(slice(2))), resolution=model.preprocess.resolution
        ),
        label_smoothing=recipe.label_smoothing,
    )
    with DeviceLock(cache_dir, str(device)).shared() as turn:
        session = Session(
            data=data, spec=recipe, seed=seed, view_seed=seed, device=device, turn=turn
        )
        train(model, distiller, session, on_epoch=on_epoch)
    save_weights(model, kept)
    return model.freeze()


def _recipe(spec: TeacherSpec) -> TrainSpec:
    recipe = _SCRATCH if spec.name == "auto" else _FINE_TUNE
    return recipe if spec.epochs is None else replace(recipe, epochs=spec.epochs)


def _key(spec: TeacherSpec, recipe: TrainSpec, model: Model, data: ImageData, seed: int) -> str:
    """Name a training by all that decides its result: start weights, recipe, images, seed."""
    content = hashlib.sha256()
    for tensor in [*model.state_dict().values(), data.train.labels]:
        content.update(tensor.numpy().tobytes())
    return digest_of([spec.name, asdict(recipe), data.key, content.hexdigest(), seed])


def _auto(data: ImageData) -> Model:
    network = tasks.of(data).network(AUTO_STUDENT, data)
    preprocess = Preprocess(
        mean=data.mean, std=data.std, resolution=data.size, channels=data.channels
    )
    return Model("auto", network, preprocess)


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
    return Model(spec.name, earlier.build(data.num_classes), earlier.preprocess)


def _listed(classes: tuple[str, ...]) -> str:
    shown = ", ".join(classes[:5]) + (", …" if classes[5:] else "")
    return f"{len(classes)} classes ({shown})"


def _network(spec: TeacherSpec, data: ImageData) -> nn.Module:
    """Return a library's or a user's network, its weights in it."""
    state = read_weights(Path(spec.weights)) if spec.weights else None
    build = _builder(spec, data, has_weights=state is not None)
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


def _builder(spec: TeacherSpec, data: ImageData, *, has_weights: bool) -> Build:
    name = spec.name
    kind, _, rest = name.partition(":")
    if name.startswith("cifar_resnet"):
        return _cifar_builder(spec, data, has_weights=has_weights)
    if kind == "timm" and rest:
        return lambda classes: _timm(rest, classes)
    if kind == "torchvision" and rest:
        return lambda classes: _torchvision(rest, classes)
    if rest:
        return _factory(name)
    hint = did_you_mean(name, ["auto", *(f"cifar_resnet{depth}" for depth in DEPTHS)])
    if Path(name, "best").is_dir():
        hint = f" (the student of that study is named study:{name})"
    hint = hint or " (a network of a library is named timm:NAME or torchvision:NAME)"
    raise SpecError(f"unknown teacher {name!r}{hint}; accepted: {', '.join(KINDS)}")


def _cifar_builder(spec: TeacherSpec, data: ImageData, *, has_weights: bool) -> Build:
    depth = spec.name.removeprefix("cifar_resnet")
    if not depth.isdigit() or int(depth) not in DEPTHS:
        raise SpecError(
            f"unknown teacher {spec.name!r}; cifar_resnet comes in {', '.join(map(str, DEPTHS))}"
        )
    if not has_weights and spec.epochs is None:
        raise SpecError(
            f"--teacher {spec.name} needs --teacher-weights FILE, or --teacher-epochs N to train it"
        )
    return lambda classes: CifarResNet(int(depth), classes or data.num_classes)


def _timm(name: str, classes: int | None) -> nn.Module:
    """Build a timm network: pretrained when `classes` is None, else empty with that head."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = did_you_mean(architecture, timm.list_models())
        raise SpecError(f"timm has no model {name!r}{hint}")
    if tag and name not in (tagged := timm.list_pretrained(f"{architecture}.*")):
        known = ", ".join(tagged) or "none"
        raise SpecError(f"timm has no weights {tag!r} for {architecture!r}; it has {known}")
    if classes is not None:
        network: nn.Module = timm.create_model(name, num_classes=classes)
        return network
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every retry
    try:
        pretrained: nn.Module = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise SpecError(_no_download(f"timm:{name}", error)) from error
    return pretrained


def _torchvision(name: str, classes: int | None) -> nn.Module:
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        hint = did_you_mean(name, torchvision.models.list_models(module=torchvision.models))
        raise SpecError(f"torchvision has no classification model {name!r}{hint}")
    if classes is not None:
        return torchvision.models.get_model(name, num_classes=classes)  # type: ignore[no-any-return]
    try:
        return torchvision.models.get_model(name, weights="DEFAULT")  # type: ignore[no-any-return]
    except (URLError, OSError, RuntimeError) as error:
        raise SpecError(_no_download(f"torchvision:{name}", error)) from error


def _no_download(name: str, error: Exception) -> str:
    return (
        f"the pretrained weights of {name} cannot be downloaded ({str(error).splitlines()[0]}); "
        "give a local file with --teacher-weights FILE"
    )


def _factory(path: str) -> Build:
    """Return a user's factory: a callable that returns the teacher, its weights in it."""
    factory = import_object(path, what="teacher")
    if not callable(factory):
        raise SpecError(f"teacher {path!r} is not callable; expected a function or a class")

    def build(classes: int | None) -> nn.Module:
        try:
            takes_classes = "num_classes" in inspect.signature(factory).parameters
            network = factory(num_classes=classes) if takes_classes and classes else factory()
        except Exception as error:
            raise SpecError(f"teacher {path!r} fails to build: {error!r}") from error
        if not isinstance(network, nn.Module):
            raise SpecError(f"teacher {path!r} returned {type(network).__name__}, not a nn.Module")
        return network

    return build


def _preprocess(name: str, network: nn.Module, data: ImageData) -> Preprocess:
    """Return what the network was trained on: its own word for it, else the ImageNet constants.

    timm says it in `pretrained_cfg`; a factory's module may carry `mean`, `std`, `resolution`.
    """
    config = getattr(network, "pretrained_cfg", None) or {}
    size = config.get("input_size", (3, _default_resolution(name, data), 0))[1]
    mean = tuple(getattr(network, "mean", config.get("mean", MEAN)))
    return Preprocess(
        mean=mean,
        std=tuple(getattr(network, "std", config.get("std", STD))),
        resolution=int(getattr(network, "resolution", size)),
        channels=len(mean),
    )


def _default_resolution(name: str, data: ImageData) -> int:
    if name.startswith("cifar_resnet"):
        return 32
    return 224 if name.startswith("torchvision:") else data.size
