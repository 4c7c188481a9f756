"""A whole study: data, teacher, search, what follows it.

This room orders the parts and stores what they found; it decides nothing about a trial.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, cast

from kdsearch.actors import OnRay, open_actors
from kdsearch.bench import Watch, load_data, pick_device, prepare, teacher_specs
from kdsearch.derive import write_derived
from kdsearch.engines import local
from kdsearch.engines.proposals import Engine, Proposals, search
from kdsearch.errors import StudyInterruptedError
from kdsearch.finish import Finished, finish
from kdsearch.model import Model
from kdsearch.packing import fitting
from kdsearch.request import (
    Request,
    free_name,
    read_request,
    refuse_changes,
    request_of,
    resume_command,
    study_path,
)
from kdsearch.rungs import Judge, OnRung
from kdsearch.spaces import default_space, find_space
from kdsearch.spec import Candidate, TrialRecord
from kdsearch.study import Asked, Outcome, Study, open_study, searched
from kdsearch.taps import bare
from kdsearch.trainer import OnEpoch
from kdsearch.trial import UNFINISHED, WEIGHTS, Bench, run_trial
from kdsearch.weights import save_weights
from kdsearch.workers import open_workers

DEFAULT_TRIALS = 20
_VERSIONED = ("kdsearch", "torch", "optuna", "timm", "onnxruntime")


def run(
    given: Mapping[str, object],
    watch: Watch,
    *,
    out: Path,
    name: str | None = None,
    trials: int | None = None,
    time_limit: float | None = None,
    device: str = "auto",
    workers: int | None = 1,
    on_ray: OnRay | None = None,
) -> Finished:
    """Run a study, or go on with the one of that name, and return what it found.

    given: fields of Request that the user set; `space` is a name or a file. What is not given is
    taken from the study when there is one, else from Request's defaults. workers: how many trials
    run at a time; one runs in this process, several in processes, on a GPU in threads; None: as
    many as fit the device. on_ray: where trials run on Ray. Raises BudgetError when nothing fits
    the budget, and another KDSearchError for a request that cannot be met.
    """
    request, old = _resolve(given, None if name is None else study_path(out, name))
    torch_device = pick_device(device)
    if on_ray is not None:
        on_ray.share(torch_device)
    teacher_specs(request)
    data, request = load_data(request, out)
    if not request.space:
        request = replace(request, space=find_space(default_space(request.data, data.size)).text)
    name = free_name(out, data.name) if name is None else name
    path = study_path(out, name)
    if old is not None:
        refuse_changes(name, old, request)
    watch.note(f"Results go to {path}")
    prepared = prepare(request, data, out=out, device=torch_device, watch=watch)
    watch.note(f"Teacher {request.teacher}: validation {100 * prepared.teacher.val:.2f} %")
    versions = {package: version(package) for package in _VERSIONED}
    with open_study(path, request, versions=versions) as study, _log_to(path / "kdsearch.log"):
        total = trials or cast("int", study.facts().get("trials", DEFAULT_TRIALS))
        seconds = study.facts().get("teacher_seconds", prepared.seconds)
        study.note(teacher=asdict(prepared.teacher), trials=total, teacher_seconds=seconds)
        _keep_teachers(prepared.bench.teachers, request, path / "teacher")
        try:
            with _engine(study, prepared.bench, watch, workers, on_ray) as engine:
                _search(study, engine, watch, total, time_limit)
                finished = finish(study, prepared.bench, watch, engine)
            shutil.rmtree(study.path / UNFINISHED, ignore_errors=True)
            return finished
        except KeyboardInterrupt:
            write_derived(study)
            raise StudyInterruptedError(
                f"interrupted; {len(searched(study.records()))} of {total} trials are kept. "
                f"`{resume_command(path)}` goes on"
            ) from None


def _keep_teachers(teachers: Sequence[Model], request: Request, directory: Path) -> None:
    """Save the teachers that were trained or fine-tuned here; several are numbered."""
    for i, (teacher, spec) in enumerate(zip(teachers, teacher_specs(request), strict=True)):
        if spec.is_trained_here:
            number = f"-{i}" if len(teachers) > 1 else ""
            save_weights(bare(teacher.network), directory / f"teacher{number}.safetensors")


def _resolve(given: Mapping[str, object], path: Path | None) -> tuple[Request, Request | None]:
    """Return the full request, and the one of the study at `path` when there is one."""
    old = read_request(path) if path is not None else None
    if "space" in given:
        given = {**given, "space": find_space(str(given["space"])).text}
    return request_of(given, old), old


def _search(
    study: Study,
    engine: Engine,
    watch: Watch,
    total: int,
    time_limit: float | None,
) -> None:
    def on_trial(record: TrialRecord) -> None:
        front = study.front()
        _keep_weights(study, front)
        watch.trial(record, front[-1] if front else None)

    watch.search(len(searched(study.records())), total, axis=study.budget.axis())
    source = search(study, n_trials=total, time_limit=time_limit)
    engine(Proposals(study, source, on_trial=on_trial))


class _RunTrial(Protocol):
    """Runs a trial on a bench, here or in a worker."""

    def __call__(
        self,
        candidate: Candidate,
        *,
        directory: Path,
        on_epoch: OnEpoch | None = None,
        on_rung: OnRung | None = None,
    ) -> Outcome: ...


@contextmanager
def _engine(
    study: Study, bench: Bench, watch: Watch, workers: int | None, on_ray: OnRay | None
) -> Iterator[Engine]:
    """Give what runs the trials, as many at a time as there are workers.

    On a GPU they are threads of this process, which share the images there, each with a stream of
    its own: processes would take turns. On a CPU several are processes of one thread each.
    """
    judge = Judge(study, images=len(bench.data.val))
    if on_ray is not None:
        on_epoch, device = watch.trial_epoch, bench.device
        with open_actors(
            workers, study, on_ray, device=device, on_epoch=on_epoch, on_rung=judge
        ) as engine:
            yield engine
        return
    unfinished = study.path / UNFINISHED
    bench = replace(bench, unfinished=unfinished)
    count = fitting(bench) if workers is None else workers
    evaluate = partial(_evaluate, study, watch, judge)
    if count == 1 or bench.device.type == "cuda":
        yield partial(
            local.run, evaluators=[partial(evaluate, partial(run_trial, bench=bench))] * count
        )
        return
    out, device = study.path.parent, bench.device
    with open_workers(count, study.request, out=out, device=device, unfinished=unfinished) as pool:
        yield partial(
            local.run, evaluators=[partial(evaluate, worker.run_trial) for worker in pool]
        )


def _evaluate(study: Study, watch: Watch, on_rung: OnRung, run: _RunTrial, asked: Asked) -> Outcome:
    return run(
        Candidate.from_params(asked.params),
        directory=study.directory(asked.number),
        on_epoch=partial(watch.trial_epoch, asked.number),
        on_rung=on_rung if asked.control_of is None else None,
    )


def _keep_weights(study: Study, front: list[TrialRecord]) -> None:
    """Delete the weights of dominated trials: a dominated trial never comes back to the front."""
    kept = {record.number for record in front}
    for record in searched(study.records()):
        if record.number not in kept:
            (study.directory(record.number) / WEIGHTS).unlink(missing_ok=True)


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Append kdsearch's log to a file; tracebacks of failed trials are there."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("kdsearch")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
