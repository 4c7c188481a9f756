"""Build a teacher by name: CIFAR ResNets, timm, torchvision, smp, the factory of a user."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from torch import nn

from kdsearch import downloads, tasks
from kdsearch.data.base import DETECTION, ImageData
from kdsearch.errors import SpecError, did_you_mean, explained
from kdsearch.extras import install
from kdsearch.models.cifar_resnet import DEPTHS, CifarResNet
from kdsearch.models.inherit.source import announce_download, quick_to_fail
from kdsearch.registry import import_object, neighbours
from kdsearch.teachers.spec import KINDS, TeacherSpec, unknown

_SHOWN = 300  # characters of another library's message
_DENSE = ("auto", "torchvision", "smp", "study", "FILE.py")  # whose teachers can segment
# Builds a network with that number of classes; None: with its own head and pretrained weights.
Build: TypeAlias = Callable[[int | None], nn.Module]


def require_kind(spec: TeacherSpec, data: ImageData) -> None:
    """Raise SpecError for a kind of teacher that gives another kind of answer than the data have.

    timm and open_clip classify images, smp segments them; torchvision does both.
    """
    kind = spec.name.partition(":")[0]
    is_dense = tasks.of(data).is_dense
    is_known = kind.startswith("cifar_resnet") or kind in ("timm", "open_clip", "smp")
    if is_known and data.task == DETECTION:
        raise SpecError(
            f"--teacher {spec.name}: it gives no boxes, and the data {data.name!r} have boxes; "
            "accepted: auto, torchvision:DETECTOR, study:FOLDER, FILE.py:FACTORY, onnx:FILE"
        )
    if is_known and is_dense != (kind in _DENSE):
        gives, has = ("an image", "a pixel") if is_dense else ("a pixel", "an image")
        dense = [name for name in KINDS if name.partition(":")[0] in _DENSE]
        accepted = dense if is_dense else [name for name in KINDS if not name.startswith("smp:")]
        raise SpecError(
            f"--teacher {spec.name}: it gives one class {gives}, and the data {data.name!r} have "
            f"one {has}; accepted: {', '.join(accepted)}"
        )


def find_builder(spec: TeacherSpec, data: ImageData, *, has_weights: bool) -> Build:
    """Return what builds the network of a teacher. Raises SpecError for an unknown name."""
    name = spec.name
    kind, _, rest = name.partition(":")
    if name.startswith("cifar_resnet"):
        return _cifar_builder(spec, data, has_weights=has_weights)
    if kind == "timm" and rest:
        return lambda classes: _timm(rest, classes)
    if kind == "torchvision" and rest and tasks.of(data).is_dense:
        return lambda classes: _torchvision_segmenter(rest, classes, own=data.num_classes)
    if kind == "torchvision" and rest:
        return lambda classes: _torchvision(rest, classes)
    if kind == "smp" and rest:
        return _smp_builder(spec, data, has_weights=has_weights)
    if rest:
        return _factory(name)
    raise unknown(name)


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
    network: nn.Module
    if classes is not None:
        network = timm.create_model(name, num_classes=classes)
        return network
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every retry
    with downloading(f"timm:{name}"):
        network = timm.create_model(name, pretrained=True)
    return network


def _torchvision(name: str, classes: int | None) -> nn.Module:
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        hint = did_you_mean(name, known)
        raise SpecError(f"torchvision has no classification model {name!r}{hint}")
    if classes is not None:
        return torchvision.models.get_model(name, num_classes=classes)  # type: ignore[no-any-return]
    network, weights = from_torchvision(name)
    shown = weights.transforms()
    stated = {"mean": tuple(shown.mean), "std": tuple(shown.std), "resolution": shown.crop_size[0]}
    for attribute, value in stated.items():
        setattr(network, attribute, value)
    return network


def _torchvision_segmenter(name: str, classes: int | None, *, own: int) -> nn.Module:
    """Build a segmenter of torchvision without its auxiliary head, which takes no part in answers.

    Pretrained when `classes` is None. Where these are as many as those of its pretrained weights,
    it states their names; own: the number that the data have, which are taken to be the data's.
    """
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models.segmentation)
    if name not in known:
        hint = did_you_mean(name, known)
        raise SpecError(
            f"torchvision has no segmentation model {name!r}{hint}; it has {', '.join(known)}"
        )
    network, weights = from_torchvision(name, classes)
    names = weights.meta["categories"]
    network.aux_classifier = None  # type: ignore[assignment]
    if classes is None or (classes == len(names) and classes != own):
        network.categories = list(names)  # type: ignore[assignment]
    return network


def from_torchvision(name: str, classes: int | None = None) -> tuple[nn.Module, Any]:
    """Return a network of torchvision, and the description of its pretrained weights.

    classes: of the head of an untrained segmenter or detector; None: pretrained.
    """
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    if classes is not None:
        empty = {"weights": None, "weights_backbone": None}
        return models.get_model(name, num_classes=classes, **empty), weights
    with downloading(f"torchvision:{name}", weights.url):
        network = models.get_model(name, weights=weights)
    return network, weights


def _smp_builder(spec: TeacherSpec, data: ImageData, *, has_weights: bool) -> Build:
    """Return what builds a network of segmentation_models_pytorch, ARCHITECTURE/ENCODER.

    Without weights its encoder starts from those of ImageNet, and its decoder has to be trained.
    """
    arch, _, encoder = spec.name.partition(":")[2].partition("/")
    if not has_weights and spec.epochs is None:
        raise SpecError(
            f"--teacher {spec.name} needs --teacher-weights FILE, or --teacher-epochs N to train it"
        )
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise SpecError(
            f"--teacher {spec.name} needs segmentation_models_pytorch: `{install('smp')}`"
        ) from error

    def build(classes: int | None) -> nn.Module:
        known = smp.MODEL_ARCHITECTURES_MAPPING
        if arch.lower() not in known:
            hint = did_you_mean(arch.lower(), known)
            raise SpecError(f"smp has no architecture {arch!r}{hint}; it has {', '.join(known)}")
        start = None if has_weights else "imagenet"
        if start:
            downloads.announce(f"the encoder of {spec.name}, unless the cache has it")
        try:
            with quick_to_fail():
                network: nn.Module = smp.create_model(
                    arch, encoder, encoder_weights=start, classes=classes or data.num_classes
                )
        except OSError as error:
            raise _no_download(spec.name, error) from error
        except (KeyError, ValueError, RuntimeError) as error:
            reason = str(error).strip("\"'")[:_SHOWN]
            raise SpecError(f"smp does not build {arch} on {encoder!r}: {reason}") from error
        if encoder.startswith("tu-"):  # the input of timm's networks; others have ImageNet's
            shown = smp.encoders.get_preprocessing_params(encoder)
            network.mean, network.std = shown["mean"], shown["std"]
        return network

    return build


@contextmanager
def downloading(name: str, url: str | None = None) -> Iterator[None]:
    """Announce weights that are not cached. Raises SpecError inside where they do not arrive."""
    announce_download(name, url)
    try:
        with quick_to_fail():
            yield
    except (OSError, RuntimeError) as error:
        raise _no_download(name, error) from error


def _no_download(name: str, error: Exception) -> SpecError:
    """Return the error of pretrained weights that are missing, with what to do."""
    return SpecError(
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
            with neighbours(path):
                network = factory(num_classes=classes) if takes_classes and classes else factory()
        except Exception as error:
            raise SpecError(f"teacher {path!r} fails to build: {explained(error)}") from error
        if not isinstance(network, nn.Module):
            raise SpecError(f"teacher {path!r} returned {type(network).__name__}, not a nn.Module")
        return network

    return build
