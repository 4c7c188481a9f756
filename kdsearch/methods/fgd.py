"""Focal and global distillation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdsearch.data.base import DETECTION
from kdsearch.methods.base import DistillLoss, Setting, positive
from kdsearch.space import Choice, Float
from kdsearch.spec import PAIRWISE_MAPPINGS

# The published weights, 1e-3, 5e-4, 1e-3 and 5e-6 of sums, times the sizes that they were found
# for: 256 channels, and 100 x 167 positions of the finest level.
# _SCALE: the root mean square of scaled maps. The loss is then about four times the task's, as in
# public logs of the authors' code (GFL: 4.4 against 1.3, yzd-v/FGD issue 73).
_SCALE = 0.3
_FOREGROUND, _BACKGROUND, _CHANNELS, _PLACES, _GLOBAL = 0.26, 0.13, 0.26, 17.0, 21.0


class Parts(NamedTuple):
    """The sums of the paper, each over the images of a batch and divided by their number."""

    foreground: Tensor
    background: Tensor
    channels: Tensor
    places: Tensor
    whole: Tensor


class FGD(DistillLoss):
    """Match levels by attention, objects and background apart (Yang et al., CVPR 2022, 2111.11837).

    loss = sum over the pairs of .26 foreground / C + .13 background / C + .26 channel attention / C
    + 17 spatial attention / HW + 21 global / (C HW): the paper's sums, freed of the size of maps.
    Attention is the softmax of mean absolute features over temperature; a position within boxes
    weighs 1 / the cells of the smallest one. The global part compares the student's maps, through
    a context block (Cao et al., 1904.11492), with the teacher's; the authors train a block on the
    teacher's side too, which lets both sides collapse. Maps are first brought to one scale, that
    of the teacher's: the weights and the temperature are not for maps of any size, and at a root
    mean square of 13, as in a detector from random weights, the softmax sees one position alone.
    student, teacher: lists of maps of equal shapes. target: boxes [B, M, 5].
    """

    need = "stages"
    align = frozenset({"channels", "size"})
    is_pairwise = False
    is_distance = False
    labels = "mixed"
    tasks = frozenset({DETECTION})
    mapping = "even"
    ranges = {
        "weight": Float(low=0.05, high=20.0, log=True),
        "temperature": Float(low=0.3, high=1.0),
        "mapping": Choice(options=PAIRWISE_MAPPINGS),
    }

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        self.temperature = positive("fgd.temperature", temperature)

    def build(self, student: Sequence[Tensor], teacher: Sequence[Tensor], setting: Setting) -> None:
        """Make the context block of each pair."""
        self.blocks = nn.ModuleList(Context(maps.shape[1]) for maps in teacher)

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], target: Tensor
    ) -> Tensor:
        """Return the sum over the pairs."""
        losses = []
        for mine, theirs, block in zip(student, teacher, self.blocks, strict=True):
            scale = _SCALE / (theirs.square().mean().sqrt() + 1e-8)
            parts = parts_of(scale * mine, scale * theirs, target, self.temperature, block)
            channels, places = mine.shape[1], mine.shape[2:].numel()
            losses.append(
                (_FOREGROUND * parts.foreground + _BACKGROUND * parts.background) / channels
                + _CHANNELS * parts.channels / channels
                + _PLACES * parts.places / places
                + _GLOBAL * parts.whole / (channels * places)
            )
        return torch.stack(losses).sum()


class Context(nn.Module):
    """A global context block, the residual of which begins at 0: [B, C, h, w] to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = max(1, channels // 2)
        self.attend = nn.Conv2d(channels, 1, 1)
        self.transform = nn.Sequential(
            nn.Conv2d(channels, half, 1),
            nn.LayerNorm([half, 1, 1]),
            nn.ReLU(),
            nn.Conv2d(half, channels, 1),
        )
        last = self.transform[3]
        assert isinstance(last, nn.Conv2d)
        assert last.bias is not None
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return x plus a vector for each image."""
        shares = self.attend(x).flatten(2).softmax(dim=2)
        context = (x.flatten(2) * shares).sum(dim=2)[:, :, None, None]
        moved: Tensor = x + self.transform(context)
        return moved


def parts_of(
    student: Tensor, teacher: Tensor, target: Tensor, temperature: float, block: nn.Module
) -> Parts:
    """Return the five sums for maps [B, C, h, w] and boxes [B, M, 5]."""
    count, (channels, height, width) = len(student), student.shape[1:]
    places = [found.abs().mean(dim=1).flatten(1) / temperature for found in (student, teacher)]
    mine, theirs = (height * width * found.softmax(dim=1) for found in places)
    means = [found.abs().mean(dim=(2, 3)) / temperature for found in (student, teacher)]
    my_channels, their_channels = (channels * found.softmax(dim=1) for found in means)
    foreground, background = masks_of(target, height, width, teacher)
    squares = (student - teacher).square() * their_channels[:, :, None, None]
    squares = squares * theirs.view(count, 1, height, width)
    whole = (block(student) - teacher).square()
    return Parts(
        foreground=(squares * foreground[:, None]).sum() / count,
        background=(squares * background[:, None]).sum() / count,
        channels=(my_channels - their_channels).abs().sum() / count,
        places=(mine - theirs).abs().sum() / count,
        whole=whole.sum() / count,
    )


def masks_of(target: Tensor, height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights [B, h, w] of positions within boxes, and of the others."""
    objects = target.nan_to_num(-1.0).to(like.dtype)
    sides = like.new_tensor([width, height])
    low = (objects[..., :2] * sides).floor()
    high = (objects[..., 2:4] * sides).ceil()
    x, y = (torch.arange(side, device=like.device) for side in (width, height))
    across = (x >= low[..., :1]) & (x <= high[..., :1])  # [B, M, w]
    down = (y >= low[..., 1:]) & (y <= high[..., 1:])
    share = 1 / (high - low + 1).clamp(min=1).prod(dim=2) * (objects[..., 4] >= 0)
    inside = across[:, :, None] & down[:, :, :, None]
    foreground = (inside * share[:, :, None, None]).amax(dim=1)
    empty = (foreground == 0).to(like.dtype)
    return foreground, empty / empty.sum(dim=(1, 2), keepdim=True).clamp(min=1)
