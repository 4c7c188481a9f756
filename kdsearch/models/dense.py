"""Networks of a body under a head, and those that give class logits at each position.

A body is a student family, or a network of timm with maps at several strides.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdsearch.data.base import SEGMENTATION
from kdsearch.data.sizes import Size
from kdsearch.errors import SpecError
from kdsearch.models import heads, students, timm_body
from kdsearch.models.dilation import dilate
from kdsearch.models.features import Outputs
from kdsearch.models.heads.base import Head
from kdsearch.models.probe import evaluating
from kdsearch.models.students.base import LARGE, ConvStudent, Student
from kdsearch.models.timm_body import TimmBody, maps_of

if TYPE_CHECKING:
    from kdsearch.spec import StudentSpec


class Bodied(Student):
    """A body under a head."""

    head: Head

    @abstractmethod
    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the maps of the body, shallow to deep."""


class OverFamily(Bodied):
    """The body is stem and stages of a student family."""

    def __init__(self, body: ConvStudent, head: Head) -> None:
        super().__init__()
        self.stem, self.stages, self.head = body.stem, body.stages, head

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return one map a stage."""
        maps = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class OverTimm(Bodied):
    """The body is a network of timm."""

    def __init__(self, body: TimmBody, head: Head) -> None:
        super().__init__()
        self.body, self.indices, self.head = body.network, body.indices, head

    def maps(self, x: Tensor) -> list[Tensor]:
        """Return the maps at the strides from 4."""
        return maps_of(self.body, x, self.indices)


class DenseStudent(Bodied):
    """A network of class logits at each position.

    Its logits are [B, K, h, w] at the head's stride, its embedding is the mean of the deepest map.
    """

    def features(self, x: Tensor) -> Outputs:
        """Return logits, embedding and one map a stage."""
        maps = self.maps(x)
        return Outputs(self.head(maps), maps[-1].mean(dim=(2, 3)), tuple(maps))


class FamilyDense(OverFamily, DenseStudent):
    """A segmenter whose body is a student family."""


class TimmDense(OverTimm, DenseStudent):
    """A segmenter whose body is a network of timm."""


def build(spec: StudentSpec, *, channels: int, num_classes: int, size: Size) -> DenseStudent:
    """Build the untrained network of a specification for inputs of (H, W) pixels, on the CPU.

    Raises SpecError for a family whose body has no maps, or values that are refused.
    """
    body, head = parts_of(
        spec, channels=channels, num_classes=num_classes, size=size, task=SEGMENTATION
    )
    return FamilyDense(body, head) if isinstance(body, ConvStudent) else TimmDense(body, head)


def parts_of(
    spec: StudentSpec, *, channels: int, num_classes: int, size: Size, task: str
) -> tuple[ConvStudent | TimmBody, Head]:
    """Return the body of a specification, and a head for a task on its maps. Raises SpecError."""
    own, of_head = heads.split(spec.knobs)
    output_stride = heads.output_stride_of(of_head)
    body = _body_of(replace(spec, resolution=0, knobs=own), channels, size)
    is_family = isinstance(body, ConvStudent)
    side = min(LARGE, max(size))  # strides of a family do not depend on more
    image = next(body.parameters()).new_zeros(1, channels, *((side, side) if is_family else size))
    maps = _maps_of(body, image)
    strides = _strides(maps, image)
    if output_stride is not None and max(strides) > output_stride:
        dilate(body, image, output_stride)
        maps = _dilated_maps(body, image, spec.family, output_stride)
        strides = _strides(maps, image)
    counts = [found.shape[1] for found in maps]
    return body, heads.build(of_head, counts, strides, num_classes, task=task)


def _body_of(spec: StudentSpec, channels: int, size: Size) -> ConvStudent | TimmBody:
    if students.is_library(spec.family):
        students.check(spec)
        return timm_body.build(spec.family, spec.knobs, channels=channels, size=size)
    body = students.build(spec, in_channels=channels, num_classes=2, data_size=size)
    if not isinstance(body, ConvStudent):
        raise SpecError(
            f"student {spec.family!r} gives no maps at several strides, which a head needs; "
            "use resnet, mobilenet, convnext or a convolutional timm:NAME"
        )
    return body


def _maps_of(body: ConvStudent | TimmBody, image: Tensor) -> Sequence[Tensor]:
    with evaluating(body), torch.no_grad():
        return body.features(image).stages if isinstance(body, ConvStudent) else body(image)


def _strides(maps: Sequence[Tensor], image: Tensor) -> list[int]:
    return [image.shape[3] // found.shape[3] for found in maps]


def _dilated_maps(
    body: ConvStudent | TimmBody, image: Tensor, family: str, output_stride: int
) -> Sequence[Tensor]:
    """Return the maps of a dilated body. Raises SpecError where a stride is left in it."""
    try:
        maps = _maps_of(body, image)
        cause = f"it still strides by {max(_strides(maps, image))}"
    except (RuntimeError, AssertionError) as error:  # layers that no longer fit each other
        maps, cause = [], " ".join(str(error).split())[:200]
    if not maps or max(_strides(maps, image)) > output_stride:
        raise SpecError(
            f"student {family}: head.output_stride {output_stride} needs stages that stride by "
            f"convolutions alone, and this body has other layers that do: {cause}"
        )
    return maps
