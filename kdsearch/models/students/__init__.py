"""Student families by name, and what builds a student from its specification.

A family is one file here, or a user's `package.module:Class`; `timm:NAME` and `torchvision:NAME`
are fixed architectures. Listing the names imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kdsearch.data.sizes import Size, scaled_size
from kdsearch.errors import SpecError, did_you_mean
from kdsearch.models.inherit.knobs import KNOBS
from kdsearch.registry import Registry

if TYPE_CHECKING:
    from kdsearch.models.features import Tapped
    from kdsearch.models.students.base import Knob, Student
    from kdsearch.spec import StudentSpec

LIBRARIES = ("timm", "torchvision")
_PROBE_SIZE = 32

FAMILIES: Registry[Student] = Registry(
    "kdsearch.models.students",
    "kdsearch.models.students.base:Student",
    what="student family",
    aliases={
        "mobilenetv2": "mobilenet",
        "mobilenet_v2": "mobilenet",
        "vision_transformer": "vit",
    },
)


def get(name: str) -> type[Student]:
    """Return the class of a family, by name, alias or dotted path. Raises SpecError."""
    return FAMILIES.get(name)


def names() -> tuple[str, ...]:
    """Return the names of the built-in families in alphabetical order."""
    return FAMILIES.names()


def is_library(family: str) -> bool:
    """Whether a family is one network of timm or torchvision, or a CIFAR ResNet."""
    if family.startswith("cifar_resnet"):
        return True
    return family.partition(":")[0] in LIBRARIES and ":" in family


def knobs_of(family: str) -> Mapping[str, Knob]:
    """Return a family's knobs, each with its default search range. Raises SpecError."""
    return KNOBS if is_library(family) else FAMILIES.get(family).knobs


def check(spec: StudentSpec) -> None:
    """Raise SpecError for a family or a knob that does not exist; `build` checks values."""
    if is_library(spec.family):
        from kdsearch.models.students._library import check_name

        check_name(spec.family)
    known = knobs_of(spec.family)
    unknown = [name for name in spec.knobs if name not in known]
    if unknown:
        hints = ", ".join(f"{name!r}{did_you_mean(name, known)}" for name in unknown)
        raise SpecError(
            f"student family {spec.family!r} has no knob {hints}; it accepts {', '.join(known)}"
        )


def check_values(spec: StudentSpec) -> None:
    """Raise SpecError for a value that a family refuses, on the meta device at a low resolution."""
    import torch

    with torch.device("meta"):
        build(spec, in_channels=3, num_classes=2, data_size=_PROBE_SIZE)


def build(
    spec: StudentSpec, *, in_channels: int, num_classes: int, data_size: int | Size
) -> Student | Tapped:
    """Build the student that a specification names, untrained, on the CPU.

    data_size: (H, W) of the data's images in pixels, or a square's side. Families get the
    `resolution` of a square as one number, else as (H, W).
    Raises SpecError when there is no such family or knob, or a value is refused.
    """
    check(spec)
    size = scaled_size(data_size, spec.resolution)
    resolution = size[0] if size[0] == size[1] else size
    if is_library(spec.family):
        from kdsearch.models.students._library import build_library

        return build_library(
            spec.family,
            in_channels=in_channels,
            num_classes=num_classes,
            resolution=resolution,
            **spec.knobs,
        )
    family = FAMILIES.get(spec.family)
    return family(
        in_channels=in_channels, num_classes=num_classes, resolution=resolution, **spec.knobs
    )
