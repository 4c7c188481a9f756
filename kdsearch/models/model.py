"""A network together with the input it was made for, fed with raw images.

Teacher and student meet on the same uint8 view; each scales, resizes and normalises it its own
way (Beyer et al., CVPR 2022, arXiv:2106.05237: same crop, or distillation is not function
matching).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdsearch.data.base import ImageSet
from kdsearch.data.sizes import Size, as_size
from kdsearch.data.views import to_input
from kdsearch.models.features import Outputs, Tapped, gradient_of, head_of
from kdsearch.models.probe import evaluating
from kdsearch.spec import StudentSpec

EVAL_BATCH = 256
_EVAL_PIXELS = 2**24  # of a batch in evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """uint8 images to network inputs: scale to [0, 1], resize to `resolution`, normalise.

    resolution: (H, W), or a square's side.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resolution: int | Size
    channels: int

    def __post_init__(self) -> None:
        height, width = as_size(self.resolution)
        if height == width:  # caches know a square by its side
            object.__setattr__(self, "resolution", height)

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 [B, channels, *size] of uint8 [B, C, H, W]."""
        return to_input(
            images,
            mean=self.mean,
            std=self.std,
            resolution=self.resolution,
            channels=self.channels,
        )

    @property
    def size(self) -> Size:
        """Return (H, W) of one input."""
        return as_size(self.resolution)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Return (channels, height, width) of one input."""
        return (self.channels, *self.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The classes of the data that a teacher's head knows.

    columns: their places among the network's outputs. classes: their places among the data's
    classes, ascending and as many; None where they are all of these.
    """

    columns: tuple[int, ...] = ()
    classes: tuple[int, ...] | None = ()


class Model(nn.Module):
    """A named network and its preprocessing: uint8 images in, logits or Outputs out.

    known: of a teacher whose outputs are not the data's classes in order. Its logits are then [B,
    S], those of the S classes that it knows, and zeros [B, 1] where it knows none.
    inherited: parameters of `network` that hold another network's weights, by name; none from
    scratch. architecture: of a teacher that is a student's network too, whose students can inherit.
    teaches: the parts of `Outputs` that a teacher can give; None: all that its network has.
    """

    columns: Tensor | None
    teaches: ClassVar[frozenset[str] | None] = None

    def __init__(
        self, name: str, network: nn.Module, preprocess: Preprocess, known: Known | None = None
    ) -> None:
        super().__init__()
        self.name = name
        self.network = network
        self.preprocess = preprocess
        self.known = known
        columns = None if known is None else torch.tensor(known.columns, dtype=torch.int64)
        self.register_buffer("columns", columns, persistent=False)
        self.inherited: frozenset[str] = frozenset()
        self.architecture: StudentSpec | None = None

    @property
    def classes(self) -> tuple[int, ...] | None:
        """Return the classes of the data that the logits are of; None: all of them, in order."""
        return None if self.known is None else self.known.classes

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K] of uint8 images [B, C, H, W]."""
        return self._of_known(self.network(self.preprocess(images)))

    def _of_known(self, logits: Tensor) -> Tensor:
        if self.columns is None:
            return logits
        if not len(self.columns):
            return logits.new_zeros(len(logits), 1)
        return logits.index_select(1, self.columns)

    def features(self, images: Tensor, *, need: frozenset[str] = frozenset()) -> Outputs:
        """Return logits, embedding, stages and the other outputs for uint8 images [B, C, H, W].

        need: the parts that will be read, so that unused attention costs nothing; empty: all but
        the gradient. With `gradient`, which only a teacher needs, all parts are detached.
        """
        if "gradient" not in need:
            return self._outputs(self.preprocess(images), need)
        with torch.enable_grad():
            outputs = self._outputs(self.preprocess(images).requires_grad_(), need)
            return gradient_of(outputs).map(Tensor.detach)

    def _outputs(self, inputs: Tensor, need: frozenset[str]) -> Outputs:
        if isinstance(self.network, Tapped):
            outputs = self.network.features(inputs, attention=not need or "attention" in need)
        else:
            outputs = self.network.features(inputs)  # type: ignore[operator]
        return replace(outputs, logits=self._of_known(outputs.logits))

    @property
    def params(self) -> int:
        """Return the number of its weights."""
        return sum(weight.numel() for weight in self.parameters())

    @property
    def head(self) -> tuple[Tensor, Tensor | None] | None:
        """Return (weight [K, D], bias [K] or None) of the layer that reads the embedding."""
        head = head_of(self.network)
        if head is None or self.columns is None:
            return head
        weight, bias = head
        return weight[self.columns], None if bias is None else bias[self.columns]

    def freeze(self) -> Model:
        """Return itself in evaluation mode, its parameters without gradient."""
        return self.eval().requires_grad_(False)

    @torch.no_grad()
    def example(self, images: Tensor, *, need: frozenset[str] = frozenset()) -> Outputs:
        """Return the outputs on one small batch, in evaluation mode: what adapters are cut for."""
        with evaluating(self):
            return self.features(images[:2], need=need)


def eval_batch(size: Size) -> int:
    """Return how many images of (H, W) pixels are evaluated at a time: at most 256."""
    return max(1, min(EVAL_BATCH, _EVAL_PIXELS // (size[0] * size[1])))


def batches(images: ImageSet, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (images, labels) of a split in order, on the device."""
    count = eval_batch(images.shape[2:])
    for start in range(0, len(images), count):
        batch = slice(start, start + count)
        yield images.at(batch).to(device), images.labels[batch].to(device)
