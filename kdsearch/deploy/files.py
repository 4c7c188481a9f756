"""Export a student to other formats; load each file again, evaluate and time it.

A file that is over the budget, loses too much or disagrees with its network is kept with the
reason, and never counts as the best.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor

from kdsearch import tasks
from kdsearch.data.base import ImageData
from kdsearch.deploy import formats, runtimes
from kdsearch.deploy.formats._fold import fold_preprocess
from kdsearch.deploy.formats._suppress import add_suppression
from kdsearch.deploy.formats.base import Agreement, Format, Source, agreement_of, both_answers
from kdsearch.deploy.latency import Latency, LatencyCache
from kdsearch.deploy.script import check_script, refuse_script, write_script
from kdsearch.deploy.targets import target_info
from kdsearch.deploy.targets.base import Target
from kdsearch.models.model import Model, batches
from kdsearch.spec import Budget
from kdsearch.study.summary import TargetInfo
from kdsearch.tasks import Metric, Task
from kdsearch.tasks._suppressed import suppressed
from kdsearch.training.validation import measured

CALIBRATION = 256  # training images that set the int8 ranges
_CALIBRATION_BATCH = 16
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedFile:
    """A written file and its measurements.

    runtime: loaded it; target: timed it. val: its metric on validation; drop: the metric of the
    PyTorch student minus val. agreement: with the network it was exported from; predicted: of
    predict.py, with the stored pixels. misses: reasons not to use it. tuned: exported after
    quantisation-aware training. output: name and form of an answer that is not that of the file
    that ships.
    """

    format: str
    name: str
    runtime: str
    target: TargetInfo
    bytes: int
    val: float
    drop: float
    agreement: Agreement
    predicted: Agreement | None
    latency: Latency
    misses: tuple[str, ...] = ()
    tuned: bool = False
    output: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """Limits of an exported file: the latency budget, and the loss of the validation metric.

    is_folded: ONNX files include the preprocessing and take uint8 [B, H, W, C]; they are named
    `-uint8`. is_decoded: files answer with classes in place of logits; they are named `-argmax`.
    is_suppressed: ONNX files keep the best boxes alone; they are named `-nms`.
    """

    budget: Budget
    max_drop: float
    is_folded: bool = False
    is_decoded: bool = False
    is_suppressed: bool = False


def write_file(
    name: str,
    student: Model,
    source: Source,
    folder: Path,
    data: ImageData,
    *,
    options: ExportOptions,
    latencies: LatencyCache,
    full_precision: float | None = None,
) -> ExportedFile:
    """Export `student` to `folder` in a format, load the file by its runtime, and measure it.

    full_precision: the metric that `drop` is computed from, by default that of `source.network`.
    The file is timed on the study's target, or, where that does not take it, on the CPU by its own
    runtime. Raises ExportError when it cannot be written or loaded.
    """
    kind, task, network = formats.get(name), tasks.of(data), source.network
    if options.is_suppressed:
        task = suppressed(task)
        network = task.deployed(network)
    with TemporaryDirectory(dir=folder, prefix=".new-") as fresh:
        form = "-argmax" * options.is_decoded + "-nms" * options.is_suppressed
        path = Path(fresh) / f"student{form}{kind.suffix}"
        kind().write(source, path)
        path = _folded(path, student, source, task, options)
        run = runtimes.load(kind.runtime, path, threads=1)
        prepare = partial(_pixels if options.is_folded else _inputs, student)
        pairs = (prepare(images) for images, _ in batches(data.val, _CPU))
        expected, answers = both_answers(network, run, pairs)
        labels = data.val.labels
        agreement = agreement_of(expected, answers, task)
        predicted = check_script(
            write_script(folder), path, run, lambda images: prepare(images)[1], data, task
        )
        val = _value(task, answers, labels)
        drop = (_value(task, expected, labels) if full_precision is None else full_precision) - val
        there = latencies.for_runtime(kind.runtime)
        latency = _time(path, there, prepare(data.val.at(slice(1)))[1])
        elsewhere = there.target.device != latencies.target.device
        found = ExportedFile(
            format=name.replace("_", "-"),
            name=path.name,
            runtime=run.label,
            target=target_info(there.target),
            bytes=sum(file.stat().st_size for file in Path(fresh).iterdir()),
            val=val,
            drop=drop,
            agreement=agreement,
            predicted=predicted,
            latency=latency,
            misses=(
                *_misses(kind, agreement, task.metric, drop, options, len(data.val)),
                *filter(None, [refuse_script(predicted, kind.tolerance.same)]),
                *_delays(latency, options.budget, latencies.target if elsewhere else None),
            ),
            tuned=full_precision is not None,
            output=f"`{task.output}`: {task.facts().output}" if options.is_suppressed else "",
        )
        for written in sorted(Path(fresh).iterdir()):
            written.replace(folder / written.name)
    return found


def _folded(path: Path, student: Model, source: Source, task: Task, options: ExportOptions) -> Path:
    """Move into an ONNX file what follows and what precedes the network; return its new path."""
    if options.is_suppressed:
        with torch.no_grad():
            shape = source.network(torch.zeros(1, *source.input_shape)).shape[1:]
        add_suppression(path, shape=shape, output=task.output)
    if options.is_folded:
        path = path.rename(path.with_stem(f"{path.stem}-uint8"))
        fold_preprocess(path, student.preprocess)
    return path


def calibration_images(student: Model, data: ImageData) -> Iterator[Tensor]:
    """Yield normalised training images [16, C, H, W], evenly spaced, without augmentation."""
    count = min(CALIBRATION, len(data.train))
    chosen = torch.linspace(0, len(data.train) - 1, count).long()
    for part in torch.split(chosen, _CALIBRATION_BATCH):
        yield student.preprocess(data.train.at(part))


def best(files: Sequence[ExportedFile]) -> ExportedFile | None:
    """Return the fastest file without misses, or None."""
    sound = [file for file in files if not file.misses]
    return min(sound, key=lambda file: file.latency.ms, default=None)


def _inputs(student: Model, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the inputs of the network and of the file: the same normalised images."""
    inputs = student.preprocess(images)
    return inputs, inputs


def _pixels(student: Model, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return normalised images, and their resized pixels [B, H, W, C], rounded."""
    shown = student.preprocess
    if images.shape[2:] != shown.size:
        images = F.interpolate(images, shown.size, mode="bilinear", antialias=True)
    images = images.expand(-1, shown.channels, -1, -1)
    return shown(images), images.permute(0, 2, 3, 1)


def _value(task: Task, answers: Tensor, labels: Tensor) -> float:
    return measured(lambda found: found, [(answers, labels)], task.meter(_CPU))


def _time(path: Path, latencies: LatencyCache, image: Tensor) -> Latency:
    """Return the latency of a file for inputs like `image`, [1, ...]."""
    first, second, third = image.shape[1:]
    dtype = str(image.dtype).removeprefix("torch.")
    return latencies.measure(path, shape=(first, second, third), dtype=dtype)


def _misses(
    kind: type[Format],
    agreement: Agreement,
    metric: Metric,
    drop: float,
    options: ExportOptions,
    images: int,
) -> Iterator[str]:
    if not kind.tolerance.accepts(agreement):
        yield (
            f"disagrees with the student (same {agreement.same:.4f}, max_rel "
            f"{agreement.max_rel:.2g}; accepted {kind.tolerance})"
        )
    if drop > options.max_drop:
        lost, most = (f"{metric.number(x)}{metric.points}" for x in (drop, options.max_drop))
        yield f"loses {lost} on {images:,} images, over {most} (--max-drop {options.max_drop:g})"


def _delays(latency: Latency, budget: Budget, unmeasured: Target | None) -> Iterator[str]:
    """Yield why a latency does not satisfy the budget. unmeasured: the study's target."""
    if unmeasured is not None:
        yield f"timed on the CPU, since --target {unmeasured.name} cannot run this file"
    limit = budget.latency_ms
    if limit is not None and latency.high_ms > limit:
        yield f"{latency.ms:.3g} ms, up to {latency.high_ms:.3g}, over the budget of {limit:g}"
