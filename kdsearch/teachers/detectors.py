"""Detectors of torchvision, and of a user's factory in its form, as teachers of boxes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from kdsearch.data.base import ImageData
from kdsearch.errors import SpecError, did_you_mean
from kdsearch.models.checkpoints import Note, renamed
from kdsearch.models.model import Preprocess
from kdsearch.models.weights import fit_weights, read_weights
from kdsearch.teachers.boxes import (
    BoxNetwork,
    BoxTeacher,
    about_order,
    checked,
    known_columns,
    refuse_training,
)
from kdsearch.teachers.classes import Names, folded, in_order, read_classes, stated_by
from kdsearch.teachers.networks import find_builder, from_torchvision
from kdsearch.teachers.spec import TeacherSpec

_EXPECTED = (
    "expected in eval mode, of a list of images [3, H, W] in [0, 1], a list of dictionaries with "
    "boxes [n, 4] (x1, y1, x2, y2 in pixels), labels [n] (0 is the background) and scores [n]"
)


def box_teacher(spec: TeacherSpec, data: ImageData, note: Note) -> BoxTeacher:
    """Return a detector of torchvision or of a user's factory.

    Raises SpecError for one that is unknown, that is to be trained, or whose answers are no boxes.
    """
    refuse_training(spec)
    names: Names | None
    if spec.name.startswith("torchvision:"):
        network, names = _torchvision(spec, data, note)
    else:
        network = find_builder(spec, data, has_weights=spec.weights is not None)(None)
        stated = next(filter(None, map(in_order, stated_by(network))), ())
        names = [(name,) for name in stated] or None
        if spec.weights is not None:
            where = f"--teacher-weights {spec.weights}"
            state = read_weights(Path(spec.weights), note)
            fit_weights(
                network, renamed(state, network.state_dict(), where, note), where=where, note=note
            )
    if spec.classes is not None:
        names = [(name,) for name in read_classes(Path(spec.classes), least=1)]
    if names is not None and folded(names[0][0]) != "background":
        names = [("",), *names]  # label 0 is the background
    width = data.num_classes + 1 if names is None else len(names)
    if names is None:
        names = [("",), *((name,) for name in data.classes)]
        note(about_order(spec.name, data))
    known = known_columns(spec, names, data, note)
    network.float()
    shown = Preprocess(
        mean=(0.0,) * 3, std=(1.0,) * 3, resolution=data.size, channels=3
    )  # the network normalises
    return checked(
        BoxTeacher(
            spec.name, BoxNetwork(ListFinder(network, width), known, data.num_classes), shown
        ),
        data,
    )


class ListFinder(nn.Module):
    """A detector in torchvision's form: a list of images in, a list of dictionaries out.

    width: of its labels, with 0 for the background. torchvision's own one-stage detectors score the
    background too, and its boxes are dropped; of others a label 0 is a mistake in numbering.
    """

    def __init__(self, network: nn.Module, width: int) -> None:
        super().__init__()
        self.network = network
        self.width = width
        is_torchvisions = type(network).__module__.startswith("torchvision.models.detection")
        self._least = 0 if is_torchvisions else 1

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes and scores of x, [B, 3, H, W] in [0, 1]. Raises SpecError."""
        answers = self.network(list(x))
        if not isinstance(answers, list | tuple) or len(answers) != len(x):
            raise SpecError(f"it answers with {type(answers).__name__}; {_EXPECTED}")
        for found in answers:
            _check_dictionary(found, self._least, self.width)
        most = max([1, *(len(found["scores"]) for found in answers)])
        boxes, scores = x.new_zeros(len(x), most, 4), x.new_zeros(len(x), most, self.width)
        height, width = x.shape[2:]
        sides = x.new_tensor([width, height, width, height])
        for place, found in enumerate(answers):
            count = len(found["scores"])
            boxes[place, :count] = found["boxes"].float() / sides
            labels = found["labels"].long()
            scores[place, torch.arange(count, device=x.device), labels] = found["scores"].float()
        return boxes, scores


def _check_dictionary(found: object, least: int, width: int) -> None:
    """Raise SpecError unless an image's answer has boxes, labels and scores that fit."""
    keys = ("boxes", "labels", "scores")
    if not isinstance(found, Mapping) or not all(isinstance(found.get(k), Tensor) for k in keys):
        raise SpecError(f"it answers an image with {type(found).__name__}; {_EXPECTED}")
    boxes, labels, scores = (found[key] for key in keys)
    if boxes.shape != (len(scores), 4) or labels.shape != scores.shape or scores.ndim != 1:
        shapes = ", ".join(f"{key} {list(found[key].shape)}" for key in keys)
        raise SpecError(f"it answers an image with {shapes}; {_EXPECTED}")
    if len(labels) and not least <= int(labels.min()) <= int(labels.max()) < width:
        raise SpecError(
            f"it answers with the labels {int(labels.min())} to {int(labels.max())}, and has "
            f"{width - 1} classes, from 1; --teacher-classes FILE names them"
        )


def _torchvision(spec: TeacherSpec, data: ImageData, note: Note) -> tuple[nn.Module, Names | None]:
    """Return a detector of torchvision with its weights, and the names of its labels."""
    name = spec.name.removeprefix("torchvision:")
    if spec.weights is None:
        return torchvision_detector(name, None)
    where = f"--teacher-weights {spec.weights}"
    state = read_weights(Path(spec.weights), note)
    count = len(categories_of(name))
    network, names = torchvision_detector(name, count)
    own = network.state_dict()
    state = renamed(state, own, where, note)
    if (found := classes_in(state, own, count)) != count:
        network, names = torchvision_detector(name, found)
    fit_weights(network, state, where=where, note=note)
    return network, names


def classes_in(state: Mapping[str, Tensor], own: Mapping[str, Tensor], count: int) -> int:
    """Return the number of classes of weights; own: those of the same network of `count` classes.

    The layers of the scores have that many outputs, or a multiple, one for each anchor.
    """
    ratios = {
        state[name].shape[0] / own[name].shape[0]
        for name in own.keys() & state.keys()
        if "cls" in name or "classification" in name
        if own[name].ndim and own[name].shape[1:] == state[name].shape[1:]
    } - {1.0}
    return round(ratios.pop() * count) if len(ratios) == 1 else count


def torchvision_detector(name: str, classes: int | None) -> tuple[nn.Module, Names | None]:
    """Return a detector of torchvision and the names of its labels, where these are COCO's.

    classes: of its head, with the background, untrained; None: pretrained. Raises SpecError.
    """
    names: Names = [(each,) for each in categories_of(name)]
    network, _ = from_torchvision(name, classes)
    return network, names if classes in (None, len(names)) else None


def categories_of(name: str) -> list[str]:
    """Return the categories of COCO, by label, that a detector of torchvision is trained on.

    Raises SpecError for another network.
    """
    import torchvision

    models = torchvision.models
    known = models.list_models(module=models.detection)
    known = [each for each in known if not each.startswith(("maskrcnn", "keypointrcnn"))]
    if name not in known:
        hint = did_you_mean(name, known)
        raise SpecError(f"torchvision has no detector {name!r}{hint}; it has {', '.join(known)}")
    categories: list[str] = models.get_model_weights(name).DEFAULT.meta["categories"]
    return categories
