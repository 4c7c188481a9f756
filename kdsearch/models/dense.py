"""A network of class logits at each position: the body of a student family under a head."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdsearch.data.sizes import Size
from kdsearch.errors import SpecError
from kdsearch.models import heads, students
from kdsearch.models.features import Outputs
from kdsearch.models.heads.base import Head
from kdsearch.models.students.base import LARGE, ConvStudent, Student
from kdsearch.space import Params

if TYPE_CHECKING:
    from kdsearch.spec import StudentSpec


class DenseStudent(Student):
    """Stem and stages of a body, then a head.

    Its logits are [B, K, h, w] at the head's stride, its embedding is the mean of the deepest map.
    """

    def __init__(self, body: ConvStudent, head: Head) -> None:
        super().__init__()
        self.stem, self.stages, self.head = body.stem, body.stages, head

    def features(self, x: Tensor) -> Outputs:
        """Return logits, embedding and one map a stage."""
        maps = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return Outputs(self.head(maps), x.mean(dim=(2, 3)), tuple(maps))


def build(spec: StudentSpec, *, channels: int, num_classes: int, size: Size) -> DenseStudent:
    """Build the untrained network of a specification for inputs of (H, W) pixels, on the CPU.

    Raises SpecError for a family whose body has no maps, or values that are refused.
    """
    own, of_head = heads.split(spec.knobs)
    body, counts, strides = body_of(spec, own, channels=channels, size=size)
    return DenseStudent(body, heads.build(of_head, counts, strides, num_classes))


def body_of(
    spec: StudentSpec, own: Params, *, channels: int, size: Size
) -> tuple[ConvStudent, list[int], list[int]]:
    """Return the body of a specification, and channels and strides of its maps.

    own: the knobs of the body. Raises SpecError for a family whose body has no maps.
    """
    body = students.build(
        replace(spec, resolution=0, knobs=own), in_channels=channels, num_classes=2, data_size=size
    )
    if not isinstance(body, ConvStudent):
        raise SpecError(
            f"student {spec.family!r} gives no maps at several strides, which a head needs; "
            "use resnet, mobilenet or convnext"
        )
    return body, *_maps_of(body, channels, size)


def _maps_of(body: ConvStudent, channels: int, size: Size) -> tuple[list[int], list[int]]:
    """Return channels and strides of the maps."""
    side = min(LARGE, max(size))  # strides do not depend on more
    with torch.no_grad():
        image = next(body.parameters()).new_zeros(1, channels, side, side)
        maps = body.eval().features(image).stages
    body.train()
    return [m.shape[1] for m in maps], [side // m.shape[3] for m in maps]
