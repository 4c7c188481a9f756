"""The pretrained network behind `--teacher auto` on photographs, and what a teacher inherits.

It is the largest of KNOWN whose weights the user gave; else the largest in a local cache; else
DOWNLOADED, where its server answers. It reads images at their own size: on TrashNet at 144 px a
fitted head on EfficientNet-Lite0 has 83 %, and 224 px would cost 2.4 times as much.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import cache
from pathlib import Path

from kdsearch import tasks
from kdsearch.data.base import ImageData
from kdsearch.errors import SpecError
from kdsearch.models.features import head_module
from kdsearch.models.inherit.source import cached, file_of, locate
from kdsearch.models.model import Model
from kdsearch.teachers.spec import TeacherSpec

logger = logging.getLogger(__name__)

KNOWN = (  # by multiply-adds, most first
    "timm:resnet50",
    "timm:tf_efficientnet_lite1",
    "timm:tf_efficientnet_lite0",
    "timm:mobilenetv3_large_100",
    "timm:resnet18",
    "timm:mobilenetv3_small_100",
)
DOWNLOADED = "timm:tf_efficientnet_lite0"  # 19 MB
PHOTOGRAPH = 64  # px, of the longer side


def is_photographs(data: ImageData) -> bool:
    """Return whether weights trained on photographs suit the images: RGB, not tiny, classified."""
    is_large = data.channels == 3 and max(data.size) >= PHOTOGRAPH
    return is_large and bool(data.classes) and tasks.of(data).has_library_networks


def find_pretrained(spec: TeacherSpec, data: ImageData) -> TeacherSpec | None:
    """Return the named teacher behind `auto` on photographs; None without weights, or for others.

    Weights that the user gave come first: of KNOWN, then of another classifier of a library.
    """
    if spec.name != "auto" or not is_photographs(data):
        return None
    libraries = ("timm:", "torchvision:")
    others = [name for name in spec.pretrained if name.startswith(libraries)]
    for name in (*KNOWN, *others):
        if (file := file_of(name, spec.pretrained)) is not None:
            return replace(spec, name=name, weights=str(file))
    found = _from_hub()
    return None if found is None else replace(spec, name=found[0], weights=str(found[1]))


@cache
def _from_hub() -> tuple[str, Path] | None:
    """Return the largest known network of the local cache, else the one to download."""
    for name in KNOWN:
        if (file := cached(name)) is not None:
            return name, file
    try:
        return DOWNLOADED, locate([DOWNLOADED], {})[DOWNLOADED]
    except SpecError as error:
        logger.info("%s", error)
        return None


def weights_of(spec: TeacherSpec, data: ImageData) -> Path | None:
    """Return the file that a teacher's weights are read from, if any. Raises SpecError."""
    return (find_pretrained(spec, data) or spec).weights_file


def about_scratch(spec: TeacherSpec, data: ImageData) -> str | None:
    """Return what it costs that `auto` has no pretrained weights for photographs, in words."""
    if spec.name != "auto" or not is_photographs(data) or find_pretrained(spec, data) is not None:
        return None
    return (
        "There are no pretrained weights on this machine, and none can be downloaded: the teacher "
        "is trained from scratch, and of few images it learns far less than a pretrained one. "
        f"--pretrained-weights {DOWNLOADED}=FILE gives it weights"
    )


def mark_inherited(model: Model, spec: TeacherSpec) -> Model:
    """Note which weights of a teacher to fine-tune come from elsewhere: all but a head that trains.

    A user's factory and a network without weights give none.
    """
    kind = spec.name.partition(":")[0]
    if spec.weights is None and kind not in ("timm", "torchvision", "study", "open_clip"):
        return model
    head = head_module(model.network)
    fresh = set() if head is None else {id(p) for p in head.parameters() if p.requires_grad}
    model.inherited = frozenset(
        name for name, weight in model.network.named_parameters() if id(weight) not in fresh
    )
    return model
