"""One trial, and the only place that orders its steps: every cheap check before an expensive one.

build -> FLOPs, parameters -> latency -> budget -> inherited weights -> losses and adapters ->
training -> weights.
A candidate that cannot be built, priced or trained becomes a failed outcome with its reason.
"""

from __future__ import annotations

import copy
import csv
import gc
import io
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from kdsearch import atomic, tasks
from kdsearch.data.base import ImageData
from kdsearch.data.feed import Feed
from kdsearch.deploy.device_lock import DeviceLock
from kdsearch.deploy.latency import LatencyCache
from kdsearch.deploy.pricing import BUILD_LOCK, build_student, price, save_student
from kdsearch.digests import digest_of
from kdsearch.errors import (
    NO_WRITE,
    KDSearchError,
    SpecError,
    StudyError,
    TrainingError,
    explained,
)
from kdsearch.methods.base import Setting
from kdsearch.models.inherit.start import inherit
from kdsearch.models.model import Model
from kdsearch.registry import sources_of
from kdsearch.spec import Budget, Candidate, Cost, DistillSpec
from kdsearch.study.early_stopping import OnRung, Rung
from kdsearch.study.trial_notes import TrialOutcome
from kdsearch.tasks import Metric, Task
from kdsearch.training.autotune import Executions
from kdsearch.training.checkpoint import Checkpoint
from kdsearch.training.cuda_graph import free_cached_memory
from kdsearch.training.distiller import Distiller, Side, needed_features
from kdsearch.training.step import Execution, Session
from kdsearch.training.teacher_cache import TeacherOutputs
from kdsearch.training.trainer import Epoch, OnEpoch, ShouldStop, curve_of, train
from kdsearch.training.validation import Evaluation

logger = logging.getLogger(__name__)
WEIGHTS = "student.safetensors"
UNFINISHED = "unfinished"  # the folder of interrupted and paused trainings


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialContext:
    """Data, teachers, budget and caches that all trials of a study share.

    train, val: the images on the device; without, each training brings its own there. Without
    `executions` steps run in plain float32. unfinished: where trainings are kept until they end.
    weights: files of pretrained weights, by network or family. teacher_evaluation: returns what the
    teachers' common answer scores on validation; without, `DistillSpec.until` has no effect.
    """

    data: ImageData
    teachers: tuple[Model, ...]
    outputs: tuple[TeacherOutputs, ...]
    budget: Budget
    latencies: LatencyCache
    device_lock: DeviceLock
    seed: int
    device: torch.device
    train: Feed | None = None
    val: Feed | None = None
    executions: Executions | None = None
    unfinished: Path | None = None
    weights: Mapping[str, Path] = field(default_factory=dict)
    teacher_evaluation: Callable[[], Evaluation] | None = None

    @property
    def task(self) -> Task:
        """Return the task of the data."""
        return tasks.of(self.data)


def run_trial(
    candidate: Candidate,
    context: TrialContext,
    directory: Path,
    *,
    on_epoch: OnEpoch | None = None,
    on_rung: OnRung | None = None,
    pause_at: int | None = None,
) -> TrialOutcome:
    """Price a candidate, distil it when it fits, and leave its weights and curve in `directory`.

    on_rung: returns why to stop there, or None; a trial that stops leaves no weights. pause_at: the
    epoch after which the training pauses; its checkpoint is kept in `context.unfinished`, and a
    later call resumes it. Without a checkpoint that call trains from the start, to the same result.
    Raises only what the study as a whole cannot survive: StudyError (nothing can be written), and
    KeyboardInterrupt.
    """
    started = time.perf_counter()
    before = _teacher_seconds(context)
    try:
        outcome = _run(candidate, context, directory, on_epoch, on_rung, pause_at)
    except StudyError:
        raise
    except KDSearchError as error:
        outcome = TrialOutcome(state="failed", reason=str(error))
    except Exception as error:  # a candidate must not end the study, whatever it does
        if _is_interrupt(error):
            raise KeyboardInterrupt from error
        if isinstance(error, OSError) and error.errno in NO_WRITE:  # no fault of the candidate
            file = error.filename or directory
            raise StudyError(f"cannot write {file}: {error.strerror}") from error
        logger.exception("%s failed", candidate)
        outcome = TrialOutcome(state="failed", reason=explained(error))
    return replace(
        outcome,
        seconds=time.perf_counter() - started,
        teacher_seconds=_teacher_seconds(context) - before,
    )


def _is_interrupt(error: BaseException | None) -> bool:
    """Return whether Ctrl-C caused an error: an extension that is imported makes another of it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _teacher_seconds(context: TrialContext) -> float:
    return sum(outputs.seconds for outputs in context.outputs)


def _run(
    candidate: Candidate,
    context: TrialContext,
    directory: Path,
    on_epoch: OnEpoch | None,
    on_rung: OnRung | None,
    pause_at: int | None,
) -> TrialOutcome:
    seed = _seed_of(candidate, context.seed)
    with BUILD_LOCK:
        torch.manual_seed(seed)
        start = build_student(candidate.student, context.data)
    cost = price(start, budget=context.budget, latencies=context.latencies)
    violations = context.budget.violations(cost)
    if any(violation > 0 for violation in violations.values()):
        return TrialOutcome(
            state="rejected",
            cost=cost,
            violations=violations,
            reason=context.budget.explain(cost),
        )
    with BUILD_LOCK:
        inherited = inherit(
            start,
            candidate.student,
            files=context.weights,
            teachers=context.teachers,
            images=context.data.train,
        )
    if inherited is not None:
        logger.info(
            "%.0f %% of the parameters are inherited (%s)",
            100 * inherited.share,
            candidate.student.init,
        )
    should_stop = None if on_rung is None else _stop_rule(on_rung, cost, candidate.student.init)
    train = partial(
        _train,
        context=context,
        seed=seed,
        on_epoch=on_epoch,
        should_stop=should_stop,
        pause_at=pause_at,
        start_key="" if inherited is None else inherited.key,
    )
    student, epochs = _trained(candidate, start, train, context.device)
    last = epochs[-1]
    if not last.stopped:
        save_student(student, directory / WEIGHTS)
        atomic.write(directory / "curve.csv", _curve_csv(epochs, context.task.metric))
    return TrialOutcome(
        state="pruned" if last.stopped else "complete",
        cost=cost,
        violations=violations,
        val=None if last.stopped else last.val,
        curve=curve_of(epochs),
        epochs=candidate.train.epochs,
        mode=last.mode,
        reason=last.stopped,
        inherited=0.0 if inherited is None else inherited.share,
        taught_epochs=None if last.is_taught else sum(e.is_taught and e.number > 0 for e in epochs),
    )


def _seed_of(candidate: Candidate, seed: int) -> int:
    """Return the seed of weights and order; see TrainSpec on `repeat`."""
    if candidate.train.repeat:
        candidate = replace(candidate, distill=DistillSpec())
    return int(digest_of([seed, candidate.digest()]), 16) % 2**31


def _stop_rule(on_rung: OnRung, cost: Cost, init: str) -> ShouldStop:
    return lambda curve, epochs: on_rung(Rung(curve=curve, epochs=epochs, cost=cost, init=init))


def _trained(
    candidate: Candidate,
    start: Model,
    train: Callable[[Candidate, Model], list[Epoch]],
    device: torch.device,
) -> tuple[Model, list[Epoch]]:
    """Train a copy of a student; where memory runs out, the student itself in twice the parts.

    The copy is freed before that. Raises TrainingError, with the peak of the GPU's memory, when it
    runs out again.
    """
    student = copy.deepcopy(start)
    accumulate = 2 * candidate.train.accumulate
    try:
        return student, train(candidate, student)
    except RuntimeError as error:
        if not _is_out_of_memory(error) or accumulate > candidate.train.batch_size:
            raise
    del student
    gc.collect()
    if device.type == "cuda":
        free_cached_memory()
    logger.warning("out of memory: once again with train.accumulate %d", accumulate)
    smaller = replace(candidate, train=replace(candidate.train, accumulate=accumulate))
    try:
        return start, train(smaller, start)
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise TrainingError(
            f"out of memory, also in {accumulate} parts of a batch{_peak(device)}; "
            "lower train.batch_size"
        ) from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether memory ran out; a CPU error shows it only by the allocator's name."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _train(
    candidate: Candidate,
    student: Model,
    *,
    context: TrialContext,
    seed: int,
    on_epoch: OnEpoch | None,
    should_stop: ShouldStop | None,
    pause_at: int | None,
    start_key: str,
) -> list[Epoch]:
    form = Execution()
    if context.executions is not None:
        with BUILD_LOCK, context.device_lock.exclusive():
            if context.device.type == "cuda":  # other trainings have queued steps
                torch.cuda.synchronize(context.device)
            form = context.executions.fastest(student, context.data, context.device)
    with BUILD_LOCK:
        torch.manual_seed(seed)
        distiller = build_distiller(candidate, student, context)
    checkpoint = None
    if context.unfinished is not None:
        name = candidate.digest()
        files = sources_of([candidate.student.family, *candidate.distill.method.split("+")])
        what = f"{name} {files} | seed {seed} | {context.data.key} | {context.device.type} | {form}"
        what += f" | from {start_key}" if start_key else ""
        checkpoint = Checkpoint(context.unfinished / f"{name}.pt", what, alone=BUILD_LOCK)
    with context.device_lock.shared() as step_lock:
        session = Session(
            data=context.data,
            spec=candidate.train,
            seed=seed,
            view_seed=context.seed,
            device=context.device,
            teachers=context.outputs,
            train=context.train,
            val=context.val,
            execution=form,
            step_lock=step_lock,
        )
        return train(
            student,
            distiller,
            session,
            on_epoch=on_epoch,
            should_stop=should_stop,
            checkpoint=checkpoint,
            pause_at=pause_at,
            taught_to=_taught_to(candidate, context),
        )


def _taught_to(candidate: Candidate, context: TrialContext) -> float:
    """Return the validation metric from which on the labels alone teach; infinite: none.

    Images without a label need their teacher to the end. A teacher that does not know all classes
    has no comparable metric.
    """
    ends = candidate.distill.until == "teacher" and bool(needed_features(candidate.distill))
    is_whole = any(teacher.classes is None for teacher in context.teachers)
    is_labelled = len(context.data.labelled) == len(context.data.train)
    if context.teacher_evaluation is None or not (ends and is_whole and is_labelled):
        return math.inf
    return context.teacher_evaluation().value


def _peak(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    return f"; peak {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"


def build_distiller(candidate: Candidate, student: Model, context: TrialContext) -> Distiller:
    """Return the losses and adapters between this student and the study's teachers."""
    images = context.data.train.at(slice(2))
    train = candidate.train
    need = needed_features(candidate.distill)
    shown = images.to(context.device)
    distiller = Distiller(
        candidate.distill,
        task=context.task,
        student=side_of(student, images),
        teachers=[side_of(teacher, shown, need) for teacher in context.teachers],
        setting=Setting(
            samples=len(context.data.train),
            batch_size=min(train.batch_size, len(context.data.train)) // train.accumulate,
        ),
        label_smoothing=train.label_smoothing,
        class_weights=context.task.class_weights(
            context.data.labelled.labels.cpu(), train.class_weights
        )
        if train.class_weights
        else None,
    )
    has_unlabelled = len(context.data.labelled) < len(context.data.train)
    if distiller.uses_labels and not distiller.are_whole and has_unlabelled:
        raise SpecError(
            f"method {candidate.distill.method!r} needs a label for each image, and this teacher "
            "cannot give the unlabelled ones a class; use a method without labels, such as kd"
        )
    return distiller


def side_of(model: Model, images: Tensor, need: frozenset[str] = frozenset()) -> Side:
    """Return a model as the losses see it. images: uint8, a few, on its device."""
    return Side(
        outputs=model.example(images, need=need & {"gradient", "attention"}),
        resolution=model.preprocess.resolution,
        head=model.head,
        classes=model.classes,
        teaches=model.teaches,
    )


def _curve_csv(epochs: Sequence[Epoch], metric: Metric) -> str:
    names = sorted(epochs[-1].losses)
    text = io.StringIO()
    writer = csv.writer(text)
    value = f"val_{metric.key}"
    heads = ["epoch", value, "lr", "seconds", *(f"loss_{name}" for name in names)]
    writer.writerow([*heads, f"own_{value}"])
    for epoch in epochs:
        losses = [f"{epoch.losses[name]:.6g}" if name in epoch.losses else "" for name in names]
        row = [epoch.number, f"{epoch.val:.6f}", f"{epoch.lr:.6g}", f"{epoch.seconds:.3f}"]
        writer.writerow([*row, *losses, f"{epoch.measured:.6f}"])
    return text.getvalue()
