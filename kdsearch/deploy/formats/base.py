"""An export format: how to write a file, its runtime, and how closely it must agree."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from kdsearch.tasks import Task

Run = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A network to export.

    network: in evaluation mode on the CPU; takes normalised images. onnx: its float32 ONNX file.
    calibration_images: returns batches of normalised training images [N, C, H, W].
    """

    network: nn.Module
    input_shape: tuple[int, int, int]
    onnx: Path
    calibration_images: Callable[[], Iterable[Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerance:
    """Required agreement of a file with its network; max_rel None: no limit."""

    same: float
    max_rel: float | None = None

    def accepts(self, agreement: Agreement) -> bool:
        """Whether an agreement is sufficient; NaN never is."""
        is_near = self.max_rel is None or agreement.is_near(self.max_rel)
        return agreement.same >= self.same and is_near

    def __str__(self) -> str:
        near = "" if self.max_rel is None else f" and max_rel <= {self.max_rel}"
        return f"same >= {self.same}{near}"


EXACT = Tolerance(same=0.999, max_rel=1e-4)
ROUNDED = Tolerance(same=0.97)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How a file's answers compare with the model's on `n` images.

    same: share of images with the same answer, as the task sees it. max_abs: largest difference of
    two numbers; max_rel: that over the standard deviation of the model's. are_classes: answers are
    no numbers to compare, but classes or lists of boxes; then both are 0 and only `same` counts.
    """

    same: float
    max_abs: float
    max_rel: float
    n: int
    are_classes: bool = False

    def is_near(self, max_rel: float) -> bool:
        """Whether no number differs by more; also of classes, which have none."""
        return self.are_classes or self.max_rel <= max_rel


class Format(ABC):
    """One kind of file. suffix: follows `student` in its name. runtime: runs it.

    is_8_bit: quantisation-aware training may follow where the file loses too much.
    """

    suffix: ClassVar[str]
    runtime: ClassVar[str]
    tolerance: ClassVar[Tolerance] = EXACT
    is_8_bit: ClassVar[bool] = False

    @abstractmethod
    def write(self, source: Source, path: Path) -> None:
        """Write the file to `path`, and further files of the format under the same stem.

        Raises ExportError when the network cannot be exported, or a package is missing.
        """


@torch.no_grad()
def both_answers(
    model: nn.Module, run: Run, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Return the answers of the model and of its loaded file to their inputs, [N, ...] each.

    The first batch is split into 1, 7 and the remaining images, to try the file on several sizes.
    """
    expected, found = [], []
    for number, (inputs, fed) in enumerate(batches):
        parts = (slice(None),) if number else (slice(1), slice(1, 8), slice(8, None))
        for part in parts:
            if len(inputs[part]):
                expected.append(model(inputs[part]))
                found.append(answer_of(run, fed[part]))
    return torch.cat(expected), torch.cat(found)


def agreement_of(ours: Tensor, theirs: Tensor, task: Task) -> Agreement:
    """Compare answers [N, ...] of the model with those of its file."""
    if not (ours.is_floating_point() and task.compares_numbers):
        same = task.agreement(ours, theirs)
        return Agreement(same=same, max_abs=0.0, max_rel=0.0, n=len(ours), are_classes=True)
    max_abs = float((ours - theirs).abs().max())
    return Agreement(
        same=task.agreement(ours, theirs),
        max_abs=max_abs,
        max_rel=max_abs / max(float(ours.std()), torch.finfo(torch.float32).tiny),
        n=len(ours),
    )


def answer_of(run: Run, images: Tensor) -> Tensor:
    """Return the answer of a loaded file as a tensor."""
    return torch.from_numpy(run(np.ascontiguousarray(images.cpu().numpy())))
