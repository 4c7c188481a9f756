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
from kdsearch.data.base import DETECTION, ImageData
from kdsearch.data.sizes import Size
from kdsearch.errors import SpecError
from kdsearch.models import students
from kdsearch.models.checkpoints import Note, renamed
from kdsearch.models.cifar_resnet import MEAN, STD
from kdsearch.models.features import Answers, Tapped
from kdsearch.models.model import Model, Preprocess
from kdsearch.models.weights import fit_weights, read_weights
from kdsearch.spec import StudentSpec
from kdsearch.tasks.classification import Classification
from kdsearch.teachers import previous_study
from kdsearch.teachers.auto import build_auto, train_teacher
from kdsearch.teachers.classes import Names, about, known_of, listed, names_of, read_classes
from kdsearch.teachers.detectors import box_teacher
from kdsearch.teachers.heads import answers_on, are_probabilities, with_new_head
from kdsearch.teachers.networks import Build, find_builder, require_kind
from kdsearch.teachers.onnx_file import onnx_teacher
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
    note: Note = lambda text: None,
) -> Model:
    """Return the frozen teacher on `device`, trained first where the spec asks for it.

    A head with other classes than the data is replaced where the teacher is fine-tuned; else the
    teacher knows those classes of the data that its head has by name, or none: see `Known`.
    Raises SpecError for an unknown name, and for weights that are missing, damaged or do not fit.
    """
    if not spec.is_trained_here:
        return _load(spec, data, note).to(device).freeze()
    torch.manual_seed(seed)
    return train_teacher(
        _start_of(spec, data, note),
        data,
        spec.epochs,
        cache_dir=cache_dir,
        seed=seed,
        device=device,
        on_epoch=on_epoch,
        note=note,
    )


def _start_of(spec: TeacherSpec, data: ImageData, note: Note = lambda text: None) -> Model:
    """Return what a teacher that is trained here starts from, on the CPU."""
    if spec.name != "auto":
        return mark_inherited(_load(spec, data, note), spec)
    found = find_pretrained(spec, data)
    if found is None:
        return build_auto(data)
    model = _load(replace(found, epochs=found.epochs or 1), data, note)  # its head is the data's
    shown = replace(model.preprocess, resolution=data.size)
    teacher = Model(found.name, model.network, shown)
    teacher.architecture = model.architecture
    return mark_inherited(teacher, found)


def _load(spec: TeacherSpec, data: ImageData, note: Note) -> Model:
    """Build a named teacher, load its weights and find the classes that its head knows."""
    model = _built(spec, data, note)
    if students.is_library(spec.name) and tasks.of(data).has_library_networks:
        model.architecture = StudentSpec(family=spec.name)
    return model


def _built(spec: TeacherSpec, data: ImageData, note: Note) -> Model:
    kind, _, rest = spec.name.partition(":")
    if kind == "onnx" and rest:
        return onnx_teacher(spec, data, note)
    if data.task == DETECTION and (kind == "torchvision" or spec.is_factory):
        return box_teacher(spec, data, note)
    is_dense = tasks.of(data).is_dense
    if kind == "study" and rest:
        return _student(spec, previous_study.find_student(rest, data), data, note)
    require_kind(spec, data)
    if kind == "open_clip" and rest:
        network: nn.Module = open_clip_teacher(rest, spec.weights, data.classes)
    else:
        network = _network(spec, data, note)
    network.float()  # a network in half precision is shown float32 images
    preprocess = _preprocess(spec, network, data, note)
    tapped = _tapped(spec, network, preprocess, is_dense=is_dense)
    model = Model(spec.name, tapped, preprocess)
    answers = answers_on(model, data)
    if are_probabilities(answers):
        tapped.answers = "probabilities"
        note(f"Teacher {spec.name} answers with probabilities: their logarithms are its logits")
    width = answers.shape[1]
    if isinstance(network, ZeroShot) and width != data.num_classes:
        raise SpecError(
            f"--teacher {spec.name}: its head is {width} texts and the data {data.name!r} has "
            f"{data.num_classes} classes ({listed(data.classes)}); embed one text a class, in this "
            "order"
        )
    if spec.epochs is None:
        return _knowing(spec, model, width, data, note)
    if width == data.num_classes:
        return model
    network = with_new_head(tapped, width, data.num_classes)
    return Model(spec.name, _tapped(spec, network, preprocess, is_dense=is_dense), preprocess)


def _tapped(
    spec: TeacherSpec,
    network: nn.Module,
    preprocess: Preprocess,
    *,
    answers: Answers = "logits",
    is_dense: bool = False,
) -> Tapped:
    try:
        return Tapped(
            network,
            in_channels=preprocess.channels,
            resolution=preprocess.resolution,
            answers=answers,
            is_dense=is_dense,
        )
    except SpecError as error:
        if spec.is_factory and not hasattr(network, "resolution"):
            raise SpecError(
                f"{error}; state the side of the images that it was made for, in the factory: "
                "network.resolution = 224"
            ) from error
        raise


def _knowing(spec: TeacherSpec, model: Model, width: int, data: ImageData, note: Note) -> Model:
    """Return the teacher with the classes of the data that its head knows."""
    assert isinstance(model.network, Tapped)
    is_library = spec.name.startswith(("timm:", "torchvision:"))
    if spec.classes is not None:
        given = read_classes(Path(spec.classes))
        if len(given) != width:
            raise SpecError(
                f"--teacher-classes {spec.classes}: {len(given)} names, and the head of "
                f"{spec.name} has {width} outputs"
            )
        names: Names | None = [(name,) for name in given]
    else:
        names = names_of(model.network.module, width, is_library=is_library)
    if width == data.num_classes and names is None:
        return model
    known, tapped = known_of(names, data.classes), model.network
    if not known.columns and tapped.is_dense:
        raise SpecError(
            f"--teacher {spec.name}: it gives {width} numbers a position, and knows none of the "
            f"{data.num_classes} classes of the data by name; --teacher-epochs 5 fits it to these "
            "classes, --teacher-classes FILE names those of its head"
        )
    if not known.columns and not tapped.is_linear:
        tapped = _tapped(spec, tapped.module, model.preprocess, answers="embedding")
    if text := about(spec.name, known, names, width, data.classes):
        note(text)
    return Model(spec.name, tapped, model.preprocess, known)


def _student(
    spec: TeacherSpec, earlier: previous_study.SavedStudent, data: ImageData, note: Note
) -> Model:
    task, known = tasks.of(data), None
    if earlier.classes != data.classes and spec.epochs is None:
        names = [(name,) for name in earlier.classes]
        known = known_of(names, data.classes)
        if not known.columns and not isinstance(task, Classification):
            raise SpecError(
                f"--teacher {spec.name}: it tells apart {listed(earlier.classes)}; the data "
                f"{data.name!r} has {listed(data.classes)}; --teacher-epochs 5 fine-tunes it on "
                "these"
            )
        if text := about(spec.name, known, names, len(names), data.classes):
            note(text)
        task = type(task)(earlier.classes)
    model = Model(spec.name, earlier.build(task), earlier.preprocess, known)
    model.architecture = earlier.spec
    return model


def _network(spec: TeacherSpec, data: ImageData, note: Note) -> nn.Module:
    """Return a library's or a user's network, its weights in it."""
    state = read_weights(Path(spec.weights), note) if spec.weights else None
    build = find_builder(spec, data, has_weights=state is not None)
    if state is None:
        return build(None)
    where = f"--teacher-weights {spec.weights}"
    network = build(data.num_classes)
    own = network.state_dict()
    state = renamed(state, own, where, note)
    # A head of K classes in the file: tensors that differ in their first size alone, all by K.
    differ = [(own[n].shape, state[n].shape) for n in own.keys() & state.keys()]
    heads = {there[0] for here, there in differ if here != there and here[1:] == there[1:]}
    if len(heads) == 1:
        network = build(heads.pop())
    elif spec.name.startswith("timm:") and own.keys() - state.keys():
        network = _headless(spec, network, build, state)
    fit_weights(network, state, where=where, note=note)
    return network


def _headless(
    spec: TeacherSpec, network: nn.Module, build: Build, state: Mapping[str, Tensor]
) -> nn.Module:
    """Return timm's network without a head where the file lacks this and nothing else."""
    bare = build(0)
    lacks = {n for n in bare.state_dict() if not n.endswith("num_batches_tracked")} - state.keys()
    return network if lacks else bare


def _preprocess(spec: TeacherSpec, network: nn.Module, data: ImageData, note: Note) -> Preprocess:
    """Return the preprocessing of the network: the one that it states, else the ImageNet constants.

    timm states it in `pretrained_cfg`; a network may carry `mean`, `std`, `resolution`. Raises
    SpecError for a factory's network that states no mean and std, unless it is trained here.
    """
    config = getattr(network, "pretrained_cfg", None) or {}
    stated = {name: getattr(network, name, config.get(name)) for name in ("mean", "std")}
    task = tasks.of(data)
    size = config["input_size"][1] if "input_size" in config else _default_resolution(spec, data)
    size = getattr(network, "resolution", size)
    if task.is_dense and isinstance(size, int):
        size = task.input_size(data.size, size)  # its longer side: no image is stretched
    mean = tuple(MEAN if stated["mean"] is None else stated["mean"])
    shown = Preprocess(
        mean=mean,
        std=tuple(STD if stated["std"] is None else stated["std"]),
        resolution=size,
        channels=len(mean),
    )
    if spec.is_factory:
        _ask(spec, shown, [name for name, value in stated.items() if value is None], note)
        if not config and not hasattr(network, "resolution"):
            height, width = shown.size
            note(
                f"Teacher {spec.name} states no resolution: it is shown images of {width} x "
                f"{height} px, the data's; network.resolution = 224 in the factory sets another"
            )
    return shown


def _ask(spec: TeacherSpec, shown: Preprocess, missing: list[str], note: Note) -> None:
    """Say which mean and std are assumed; of a teacher that is not trained here, ask for them."""
    if not missing:
        return
    lacks = f"teacher {spec.name} does not state the {' and '.join(missing)} of its images"
    if spec.epochs is not None:
        note(
            f"The {lacks}: mean {shown.mean} and std {shown.std} are assumed, and it is fine-tuned"
        )
        return
    raise SpecError(
        f"{lacks}, and under others its answers are worth little. Add the line, with the values "
        f"of its training, to the factory:\n  network.mean, network.std = {MEAN}, {STD}"
    )


def _default_resolution(spec: TeacherSpec, data: ImageData) -> int | Size:
    if spec.name.startswith("cifar_resnet"):
        return 32
    is_square = spec.name.startswith("torchvision:") and not tasks.of(data).is_dense
    return 224 if is_square else data.size
