"""A detector: the body of a student family under a head that answers at the points of a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from kdsearch.data.base import DETECTION
from kdsearch.data.sizes import Size
from kdsearch.models.boxes import boxes_of
from kdsearch.models.dense import Bodied, OverFamily, OverTimm, parts_of
from kdsearch.models.features import Outputs
from kdsearch.models.heads.gfl import GFL
from kdsearch.models.students.base import ConvStudent

if TYPE_CHECKING:
    from kdsearch.spec import StudentSpec


class Detector(Bodied):
    """A network of boxes and scores at the points of a grid.

    Its answer is [B, P, 4 + K]: boxes in fractions of the image, and a score in [0, 1] for each
    class. Its logits are [B, P, K], its edges [B, P, 4, BINS], its stages the levels of the
    pyramid, its embedding the mean of the body's deepest map.
    """

    def features(self, x: Tensor) -> Outputs:
        """Return logits, edges, embedding and levels."""
        assert isinstance(self.head, GFL)
        maps = self.maps(x)
        levels = self.head.levels(maps)
        logits, edges = self.head(levels)
        return Outputs(
            logits,
            maps[-1].mean(dim=(2, 3)),
            tuple(levels),
            edges=edges,
            levels=tuple((level.shape[2], level.shape[3]) for level in levels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return boxes and scores."""
        found = self.features(x)
        assert found.edges is not None
        return torch.cat([boxes_of(found.edges, found.levels), found.logits.sigmoid()], dim=2)


class FamilyDetector(OverFamily, Detector):
    """A detector whose body is a student family."""


class TimmDetector(OverTimm, Detector):
    """A detector whose body is a network of timm."""


def build(spec: StudentSpec, *, channels: int, num_classes: int, size: Size) -> Detector:
    """Build the untrained detector of a specification for inputs of (H, W) pixels, on the CPU.

    Raises SpecError for a family whose body has no maps, or values that are refused.
    """
    body, head = parts_of(
        spec, channels=channels, num_classes=num_classes, size=size, task=DETECTION
    )
    return FamilyDetector(body, head) if isinstance(body, ConvStudent) else TimmDetector(body, head)
