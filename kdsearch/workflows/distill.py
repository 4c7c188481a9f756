"""Distil one student without a search."""

from __future__ import annotations

import resource
import shutil
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from kdsearch.deploy.package import Package, pack
from kdsearch.deploy.pricing import build_student, load_student
from kdsearch.deploy.targets import require_target
from kdsearch.digests import digest_of
from kdsearch.errors import StudyError, TrainingError
from kdsearch.models import heads, students
from kdsearch.spec import Candidate
from kdsearch.study.callbacks import Callback, Callbacks
from kdsearch.study.config import StudyConfig, study_path
from kdsearch.study.loggers.tensorboard import FOLDER, write_epoch
from kdsearch.study.run_state import RunState
from kdsearch.study.trial_notes import TrialOutcome
from kdsearch.tasks import Metric
from kdsearch.teachers.evaluation import NEAREST, knows_none
from kdsearch.training import distiller
from kdsearch.training.trainer import Epoch
from kdsearch.training.validation import evaluate_in_detail
from kdsearch.trials.context import load_data, pick_device, prepare, teacher_at_chance_on
from kdsearch.trials.start import require_teacher, with_weights
from kdsearch.trials.trial import UNFINISHED, WEIGHTS, build_distiller, run_trial
from kdsearch.workflows.picture import write_figures, write_picture

_LEFT = ("curve.csv", FOLDER, WEIGHTS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """A distilled student on disk: its values of the metric, its teacher's, and its folder."""

    outcome: TrialOutcome
    metric: Metric
    teacher_val: float
    results: dict[str, float]
    package: Package


def distill(
    candidate: Candidate,
    config: StudyConfig,
    *,
    out: Path,
    name: str,
    device: str = "auto",
    callback: Callback,
) -> Distilled:
    """Train one candidate with its teacher; with a study's seed it is the study's student.

    Writes `out/name/`: curve.csv, tensorboard/, best/. Raises TrainingError when the candidate
    cannot be trained, and another KDSearchError for a configuration that cannot run.
    """
    path = study_path(out, name)
    _clear(path)
    body, _ = heads.split(candidate.student.knobs)
    students.check(replace(candidate.student, knobs=body))
    distiller.check(candidate.distill)
    torch_device = pick_device(device)
    data, config = load_data(config, out, callback.on_message)
    family = candidate.student.family
    starting = [family] if candidate.student.init == "pretrained" else []
    config = with_weights(config, starting, sole=family)
    student = build_student(candidate.student, data)  # raises before any training
    callback.on_message(f"Results go to {path}")
    require_target(config).dry_run(student.preprocess.input_shape, callback.on_message)
    prepared = prepare(config, data, out=out, device=torch_device, callback=callback)
    if candidate.student.init == "teacher":
        require_teacher([family], prepared.context.teachers)
    build_distiller(candidate, student, prepared.context)
    task = prepared.context.task
    teacher_val = task.metric.text(prepared.teacher.val)
    which = config.teacher + NEAREST * knows_none(prepared.context.teachers)
    callback.on_message(f"Teacher {which}: validation {teacher_val}")
    if warning := teacher_at_chance_on(data, prepared.teacher.val, prepared.details):
        callback.on_message(warning)
    callbacks = Callbacks([callback])
    callbacks.on_search_begin(RunState(total=1, budget=config.budget))
    with SummaryWriter(str(path / FOLDER)) as board:

        def record(epoch: Epoch, epochs: int) -> None:
            write_epoch(board, epoch, task.metric)
            board.add_scalar(f"{task.metric.key}/teacher", prepared.teacher.val, epoch.number)
            board.add_scalar("memory/MB", _memory_bytes(torch_device) / 1e6, epoch.number)
            callbacks.on_epoch(0, epoch, epochs)

        kept = path / UNFINISHED / digest_of(asdict(config))
        context = replace(prepared.context, unfinished=kept)
        epochs = candidate.train.epochs
        callback.on_message(f"Training {family} by {candidate.distill.method}; epochs: {epochs}")
        outcome = run_trial(candidate, context, path, on_epoch=record)
    if outcome.state != "complete":
        raise TrainingError(outcome.reason)
    assert outcome.cost is not None
    assert outcome.val is not None
    student = load_student(candidate.student, data, path / WEIGHTS)
    callback.on_message(f"Evaluating the student on {len(data.test):,} test images")
    test = evaluate_in_detail(student.to(torch_device), data.test, context.task, torch_device)
    results = {"validation": outcome.val, "test": test.value}
    callback.on_message("Exporting the student, and measuring its file")
    package = pack(
        path / "best",
        student,
        candidate,
        config,
        data,
        cost=outcome.cost,
        results=results,
        teacher={"validation": prepared.teacher.val},
        latencies=prepared.context.latencies,
        details={"test": test.details},
        taught_epochs=outcome.taught_epochs,
    )
    write_figures(package.path, {"test": test.details}, data.classes)
    write_picture(package.path, student, context)
    (path / WEIGHTS).unlink()
    shutil.rmtree(path / UNFINISHED, ignore_errors=True)
    return Distilled(
        outcome=outcome,
        metric=task.metric,
        teacher_val=prepared.teacher.val,
        results=results,
        package=package,
    )


def _clear(path: Path) -> None:
    """Remove the files of an interrupted distillation, except the state of its training.

    Raises StudyError for anything else.
    """
    found = [file for file in path.iterdir() if file.name != UNFINISHED] if path.is_dir() else []
    if any(file.name not in _LEFT for file in found):
        raise StudyError(f"{path} is not empty; give another --name")
    for file in found:
        if file.is_dir():
            shutil.rmtree(file)
        else:
            file.unlink()


def _memory_bytes(device: torch.device) -> int:
    """Return the peak memory in use: the tensors' on a GPU, the process's on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
