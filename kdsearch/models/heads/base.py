"""The base class of heads, and their layers.

A head gets the maps of a body, shallow to deep, and returns logits at the stride that it states.
They are resized bilinearly, with the corners of pixels aligned, as PyTorch does without
`align_corners`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdsearch.data.base import SEGMENTATION
from kdsearch.errors import SpecError
from kdsearch.models.students.base import Knob, conv_norm
from kdsearch.space import Int

CHANNELS = Int(low=16, high=256, log=True)


class Head(nn.Module, ABC):
    """Maps [B, C, h, w], one a stage of the body, to logits [B, K, h, w].

    A head is made by `Head(maps, strides, num_classes, **knobs)`: channels and strides of the maps.
    task: that it answers for. knobs: each knob's default search range.
    """

    task: ClassVar[str] = SEGMENTATION
    knobs: ClassVar[Mapping[str, Knob]] = MappingProxyType({"channels": CHANNELS})

    @abstractmethod
    def forward(self, maps: Sequence[Tensor]) -> Any:
        """Return the logits; the head of a detector returns edges as well."""


def conv_relu(
    in_channels: int, out_channels: int, kernel: int = 1, *, groups: int = 1
) -> nn.Module:
    """Return a convolution with BatchNorm and ReLU."""
    return conv_norm(in_channels, out_channels, kernel, groups=groups).append(nn.ReLU())


def separable(channels: int) -> nn.Sequential:
    """Return a depthwise 3x3 and a 1x1 convolution, each with BatchNorm and ReLU."""
    return nn.Sequential(
        conv_relu(channels, channels, 3, groups=channels), conv_relu(channels, channels)
    )


def resized(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps resized bilinearly to (h, w)."""
    height, width = size
    return F.interpolate(maps, (height, width), mode="bilinear", align_corners=False)


def require(kind: str, channels: int) -> None:
    """Raise SpecError for a number of channels that no head takes."""
    if isinstance(channels, bool) or not isinstance(channels, int) or not 1 <= channels <= 4096:
        raise SpecError(f"head {kind}: channels {channels!r} is not a whole number from 1 to 4096")


def at_stride(strides: Sequence[int], wanted: int) -> int:
    """Return the first place of the largest stride that is at most `wanted`, else 0."""
    return strides.index(
        max((stride for stride in strides if stride <= wanted), default=strides[0])
    )
