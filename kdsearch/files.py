"""The files of a student in other formats, each written, loaded again and measured on itself.

A file that is over the budget, loses too much accuracy or does not agree with its network is kept
and marked with the reason; it is never called the best.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from kdsearch import export, runtimes
from kdsearch.data.base import UNLABELLED, ImageData
from kdsearch.export.base import Agreement, Format, Source, agreement_of, answer, of_several_sizes
from kdsearch.latency import Latency, measure_run
from kdsearch.model import Model, batches
from kdsearch.spec import Budget
from kdsearch.turns import Turns

CALIBRATION = 256  # training images that ranges are taken from
_CALIBRATION_BATCH = 16
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A written file and what was measured on it: its runtime, one thread, batch 1.

    val: its accuracy on validation; drop: what the PyTorch student has more. misses: why it is not
    to be shipped. tuned: whether the student was trained for 8 bits.
    """

    format: str
    name: str
    runtime: str
    bytes: int
    val: float
    drop: float
    agreement: Agreement
    latency: Latency
    misses: tuple[str, ...] = ()
    tuned: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """What a file must keep to: the budget of latency, and the accuracy it may lose."""

    budget: Budget
    max_drop: float


def write_file(
    name: str,
    student: Model,
    source: Source,
    folder: Path,
    data: ImageData,
    *,
    demands: Demands,
    turns: Turns,
) -> File:
    """Write `student` in a format to `folder`, load it again by its runtime, and measure it.

    Files appear there whole. Raises ExportError when it cannot be written or loaded.
    """
    kind = export.get(name)
    with TemporaryDirectory(dir=folder, prefix=".new-") as fresh:
        path = Path(fresh) / f"student{kind.suffix}"
        kind().write(source, path)
        found = _measured(name.replace("_", "-"), kind, path, student, data, demands, turns)
        for written in sorted(Path(fresh).iterdir()):
            written.replace(folder / written.name)
    return found


def calibration(student: Model, data: ImageData) -> Iterator[Tensor]:
    """Yield normalised training images in small batches, spread over the set, views plain."""
    count = min(CALIBRATION, len(data.train))
    chosen = torch.linspace(0, len(data.train) - 1, count).long()
    for part in torch.split(chosen, _CALIBRATION_BATCH):
        yield student.preprocess(data.train.at(part))


def best(files: Sequence[File]) -> File | None:
    """Return the fastest file that misses nothing, None without one."""
    sound = [file for file in files if not file.misses]
    return min(sound, key=lambda file: file.latency.ms, default=None)


def _measured(
    name: str,
    kind: type[Format],
    path: Path,
    student: Model,
    data: ImageData,
    demands: Demands,
    turns: Turns,
) -> File:
    run = runtimes.load(kind.runtime, path, threads=1)
    expected, found, labels = _answers(run, student, data)
    agreement = agreement_of(expected, found)
    val, whole = (_accuracy(logits, labels) for logits in (found, expected))
    image = np.zeros((1, *student.preprocess.input_shape), np.float32)
    with turns.measuring():
        latency = measure_run(run, image)
    return File(
        format=name,
        name=path.name,
        runtime=run.label,
        bytes=sum(file.stat().st_size for file in path.parent.iterdir()),
        val=val,
        drop=whole - val,
        agreement=agreement,
        latency=latency,
        misses=tuple(_misses(kind, agreement, whole - val, latency, demands)),
    )


@torch.no_grad()
def _answers(
    run: runtimes.Runtime, student: Model, data: ImageData
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the student's logits on validation, the file's, and the labels."""
    expected, found, labels = [], [], []
    for number, (images, target) in enumerate(batches(data.val, _CPU)):
        inputs = student.preprocess(images)
        for part in (inputs,) if number else of_several_sizes(inputs):
            expected.append(student.network(part))
            found.append(answer(run, part))
        labels.append(target)
    return torch.cat(expected), torch.cat(found), torch.cat(labels)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels)[labels != UNLABELLED].float().mean())


def _misses(
    kind: type[Format], agreement: Agreement, drop: float, latency: Latency, demands: Demands
) -> Iterator[str]:
    if not kind.tolerance.accepts(agreement):
        yield (
            f"disagrees with the student (argmax {agreement.argmax:.4f}, max_rel "
            f"{agreement.max_rel:.2g}; accepted {kind.tolerance})"
        )
    if drop > demands.max_drop:
        yield f"loses {100 * drop:.2f} points, over --max-drop {demands.max_drop:g}"
    limit = demands.budget.latency_ms
    if limit is not None and latency.ms > limit:
        yield f"{latency.ms:.3g} ms, over the budget of {limit:g}"
