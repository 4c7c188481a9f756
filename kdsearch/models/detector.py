"""A detector: the body of a student family under a head that answers at the points of a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdsearch.data.base import DETECTION
from kdsearch.data.sizes import Size
from kdsearch.models import dense, heads
from kdsearch.models.boxes import boxes_of
from kdsearch.models.features import Outputs
from kdsearch.models.heads.gfl import GFL
from kdsearch.models.students.base import ConvStudent, Student

if TYPE_CHECKING:
    from kdsearch.spec import StudentSpec


class Detector(Student):
    """Stem and stages of a body, then a head.

    Its answer is [B, P, 4 + K]: boxes in fractions of the image, and a score in [0, 1] for each
    class. Its logits are [B, P, K], its edges [B, P, 4, BINS], its stages the levels of the
    pyramid, its embedding the mean of the body's deepest map.
    """

    def __init__(self, body: ConvStudent, head: GFL) -> None:
        super().__init__()
        self.stem, self.stages, self.head = body.stem, body.stages, head

    def features(self, x: Tensor) -> Outputs:
        """Return logits, edges, embedding and levels."""
        maps = []
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        levels = self.head.levels(maps)
        logits, edges = self.head(levels)
        return Outputs(
            logits,
            x.mean(dim=(2, 3)),
            tuple(levels),
            edges=edges,
            levels=tuple((level.shape[2], level.shape[3]) for level in levels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return boxes and scores."""
        found = self.features(x)
        assert found.edges is not None
        return torch.cat([boxes_of(found.edges, found.levels), found.logits.sigmoid()], dim=2)


def build(spec: StudentSpec, *, channels: int, num_classes: int, size: Size) -> Detector:
    """Build the untrained detector of a specification for inputs of (H, W) pixels, on the CPU.

    Raises SpecError for a family whose body has no maps, or values that are refused.
    """
    own, of_head = heads.split(spec.knobs)
    body, counts, strides = dense.body_of(spec, own, channels=channels, size=size)
    head = heads.build(of_head, counts, strides, num_classes, task=DETECTION)
    assert isinstance(head, GFL)
    return Detector(body, head)
