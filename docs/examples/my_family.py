"""Your own student family: plain convolutions, three stages, no shortcuts."""

from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from kdsearch.models.students.base import ConvStudent, Knob, accept, conv_norm, scaled
from kdsearch.space import Float, Int


class Plain(ConvStudent):
    """`width` multiplies the channels, `depth` counts convolutions in a stage."""

    knobs: ClassVar[Mapping[str, Knob]] = {
        "width": Float(low=0.25, high=2.0, log=True),
        "depth": Int(low=1, high=4),
    }

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        resolution: int,
        width: float = 1.0,
        depth: int = 2,
    ) -> None:
        accept(
            "plain",
            in_channels=in_channels,
            num_classes=num_classes,
            resolution=resolution,
            width=(width, Float(low=0.1, high=8.0)),
            depth=(depth, Int(low=1, high=16)),
        )
        channels = [scaled(count, width) for count in (16, 32, 64)]
        stem = conv_norm(in_channels, channels[0], 3).append(nn.ReLU())
        stages = []
        for stage, count in enumerate(channels):
            before = channels[max(0, stage - 1)]
            layers = nn.Sequential()
            for place in range(depth):
                stride = 2 if stage and not place else 1
                layers.extend(conv_norm(count if place else before, count, 3, stride=stride))
                layers.append(nn.ReLU())
            stages.append(layers)
        super().__init__(stem=stem, stages=stages, embedding=channels[-1], num_classes=num_classes)
