"""What a student family is: a network with a width and a depth that returns its stages natively.

A family is one file with one class; the constructor takes `in_channels`, `num_classes`,
`resolution` and its knobs, all by keyword, every knob with a default. Nothing here starts at zero
gain: a folding compiler would delete the branch and the latency would be a lie.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import ClassVar, TypeAlias

from torch import Tensor, nn

from kdsearch.data.sizes import Size, as_size, size_text
from kdsearch.errors import SpecError
from kdsearch.models.features import Outputs
from kdsearch.space import Choice, Float, Int, Value

Knob: TypeAlias = Float | Int | Choice

LARGE = 64
"""From this side in pixels a family shrinks the image early, as its ImageNet form does."""
MIN_RESOLUTION = 8


class Student(nn.Module, ABC):
    """Base of every family. `knobs`: each knob's default search range.

    pretrained: the library's network whose weights a student may start from, `timm:NAME`.
    """

    knobs: ClassVar[Mapping[str, Knob]] = MappingProxyType({})
    pretrained: ClassVar[str] = ""

    @staticmethod
    def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of `pretrained` under the names of the family."""
        return dict(state)

    @abstractmethod
    def features(self, x: Tensor) -> Outputs:
        """Return logits, embedding and stages of x: [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, K]."""
        return self.features(x).logits


class ConvStudent(Student):
    """Stem, stages, neck, global average, head: a family's constructor fills in the parts."""

    def __init__(
        self,
        *,
        stem: nn.Module,
        stages: Sequence[nn.Module],
        embedding: int,
        num_classes: int,
        neck: nn.Module | None = None,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(stages)
        self.neck = neck or nn.Identity()
        self.norm = norm or nn.Identity()
        self.head = nn.Linear(embedding, num_classes)

    def features(self, x: Tensor) -> Outputs:
        """Return logits, embedding and one map a stage."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        embedding = self.norm(self.neck(x).mean(dim=(2, 3)))
        return Outputs(self.head(embedding), embedding, tuple(maps))


def accept(
    family: str,
    *,
    in_channels: int,
    num_classes: int,
    resolution: int | Size,
    **knobs: tuple[Value, Knob],
) -> None:
    """Check the arguments of a constructor; `knobs`: each value with the range it must be in.

    Raises SpecError that lists everything refused, with what is accepted.
    """
    size = as_size(resolution)
    values: dict[str, tuple[Value, Knob]] = {
        "in_channels": (in_channels, Int(low=1, high=4096)),
        "num_classes": (num_classes, Int(low=1, high=1_000_000)),
        "resolution": (min(size), Int(low=MIN_RESOLUTION, high=4096)),
        **knobs,
    }
    refused = [
        f"{name} {value!r} is not {described(dim)}"
        for name, (value, dim) in values.items()
        if value not in dim or isinstance(value, bool)
    ]
    if refused:
        raise SpecError(f"student {family} at {size_text(size)} px: {'; '.join(refused)}")


def described(dim: Knob) -> str:
    """Return the values of a range in words."""
    if isinstance(dim, Choice):
        return f"one of {', '.join(map(str, dim.options))}"
    return f"a {'whole ' if isinstance(dim, Int) else ''}number in [{dim.low}, {dim.high}]"


def shrinks_early(resolution: int | Size) -> bool:
    """Whether a family shrinks images of this size early."""
    return max(as_size(resolution)) >= LARGE


def scaled(channels: int, width: float, *, multiple: int = 8) -> int:
    """Return channels * width as the nearest multiple, at least one."""
    return max(1, int(channels * width / multiple + 0.5)) * multiple


def dealt(depth: int, stages: int) -> list[int]:
    """Deal blocks out evenly over stages; what is left goes to the middle, then deeper."""
    counts = [depth // stages] * stages
    middle = stages // 2
    order = [*range(middle, stages), *reversed(range(middle))]
    for stage in order[: depth % stages]:
        counts[stage] += 1
    return counts


def chained(
    block: Callable[[int, int, int], nn.Module],
    in_channels: int,
    out_channels: int,
    *,
    depth: int,
    stride: int,
) -> nn.Sequential:
    """Return `depth` of block(in_channels, out_channels, stride), only the first one strided."""
    first = block(in_channels, out_channels, stride)
    return nn.Sequential(first, *(block(out_channels, out_channels, 1) for _ in range(depth - 1)))


def conv_norm(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Return a convolution without bias and its BatchNorm, padded to keep the size."""
    return nn.Sequential(
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(out_channels),
    )
