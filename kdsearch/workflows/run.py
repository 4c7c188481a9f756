"""A whole study: data, teacher, search, what follows it.

This room orders the parts and stores what they found; it decides nothing about a trial.
"""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, cast

import torch

from kdsearch.data.base import ImageData
from kdsearch.deploy.pricing import StaticCosts
from kdsearch.deploy.targets import require_target
from kdsearch.engines import local
from kdsearch.engines.dispatch import Engine, Proposals, search
from kdsearch.engines.gpu_packing import fitting
from kdsearch.engines.processes import open_workers
from kdsearch.engines.ray_actors import OnRay, open_actors
from kdsearch.errors import StudyInterruptedError, TrialsFailedError
from kdsearch.hpo.stopping import Curve
from kdsearch.models.features import bare
from kdsearch.models.model import Model
from kdsearch.models.weights import save_weights
from kdsearch.report.artifacts import write_derived
from kdsearch.report.dashboard import write_dashboard
from kdsearch.spec import Budget, Candidate, TrialRecord
from kdsearch.study import refit
from kdsearch.study.builtin_spaces import default_space, find_space
from kdsearch.study.callbacks import Callback, Callbacks
from kdsearch.study.config import (
    StudyConfig,
    config_of,
    free_name,
    read_config,
    refuse_changes,
    refuse_sampler,
    resume_command,
    study_path,
)
from kdsearch.study.early_stopping import Judge, OnRung, foretelling
from kdsearch.study.ledger import Ledger
from kdsearch.study.loggers import Loggers
from kdsearch.study.open import open_study, reach, refuse_driven
from kdsearch.study.refit import Refit
from kdsearch.study.spend import refits_left, refits_to_come
from kdsearch.study.stop_conditions import Ending
from kdsearch.study.storage_url import kept_url
from kdsearch.study.study import OpenStudy, Price, Proposal, TrialOutcome, searched
from kdsearch.study.warm_start import recipes_of, start_of
from kdsearch.training.trainer import OnEpoch
from kdsearch.trials.context import load_data, pick_device, prepare, teacher_specs
from kdsearch.trials.trial import UNFINISHED, WEIGHTS, TrialContext, run_trial
from kdsearch.workflows.finalize import Finalized, finalize

DEFAULT_TRIALS = 20
_VERSIONED = ("kdsearch", "torch", "optuna", "timm", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a study is run, which decides none of its candidates: it may go on in another way.

    trials: in all; None: as before, else DEFAULT_TRIALS. time_limit: seconds of this run's search.
    flat_after: how many complete trials that leave the front as it is end the search; 0: none do;
    None: as before, else none. workers: how many trials run at a time; one runs in this process,
    several in processes, on a GPU in threads; None: as many as fit the device. storage: the URL of
    the database with its password, where trials are not kept in the study's folder. trial_timeout:
    the seconds after which a trial fails, alone; all then run in processes. refit: what is trained
    again after the search; None: as before.
    """

    trials: int | None = None
    time_limit: float | None = None
    flat_after: int | None = None
    device: str = "auto"
    workers: int | None = 1
    storage: str | None = None
    trial_timeout: float | None = None
    on_ray: OnRay | None = None
    refit: Refit | None = None


def run(
    given: Mapping[str, object],
    callback: Callback,
    *,
    out: Path,
    name: str | None = None,
    plan: Plan | None = None,
    loggers: Loggers | None = None,
) -> Finalized:
    """Run a study, or go on with the one of that name, and return what it found.

    given: fields of StudyConfig that the user set; `space` is a name or a file. Other fields come
    from the study when there is one, else from the defaults. Raises BudgetError when nothing fits
    the budget, and another KDSearchError for a configuration that cannot run.
    """
    started = time.perf_counter()
    plan = plan or Plan()
    device = pick_device(plan.device)
    if plan.on_ray is not None:
        plan.on_ray.share(device)
    config, data, path = _settle(given, out, name, plan.storage)
    callback.on_message(f"Results go to {path}")
    require_target(config).dry_run((data.channels, data.size, data.size), callback.on_message)
    prepared = prepare(config, data, out=out, device=device, callback=callback)
    callback.on_message(f"Teacher {config.teacher}: validation {100 * prepared.teacher.val:.2f} %")
    versions = {package: version(package) for package in _VERSIONED}
    opened = open_study(path, config, versions=versions, storage=plan.storage)
    with opened as study, _log_to(path / "kdsearch.log"):
        plan = _as_before(plan, study)
        total = plan.trials or DEFAULT_TRIALS
        seconds = study.facts().get("teacher_seconds", prepared.seconds)
        known = cast("dict[str, float]", study.facts().get("teacher", {})).get("test")
        teacher = asdict(replace(prepared.teacher, test=known))
        study.note(teacher=teacher, teacher_seconds=seconds)
        study.note(trials=total, flat_after=plan.flat_after)
        refit.ask(study, plan.refit)
        _tell(callback, refits_to_come(study, total))
        _start_from(study, out, callback)
        _keep_teachers(prepared.context.teachers, config, path / "teacher")
        try:
            with (
                Ledger(study, device=str(device), started=started) as ledger,
                _callbacks(study, callback, ledger, loggers) as callbacks,
                _engine(
                    study, prepared.context, callbacks, plan, _told_before(study, out)
                ) as engine,
            ):
                _search(study, prepared.context, engine, callbacks, plan, total=total)
                _tell(callbacks, refits_left(study))
                finished = finalize(study, prepared.context, callbacks, engine, ledger=ledger)
            write_dashboard(study)
            shutil.rmtree(study.path / UNFINISHED, ignore_errors=True)
            return finished
        except TrialsFailedError:
            write_derived(study)
            raise
        except KeyboardInterrupt:
            write_derived(study)
            raise StudyInterruptedError(
                f"interrupted; {len(searched(study.records()))} of {total} trials are kept. "
                f"`{resume_command(path)}` goes on"
            ) from None


def _tell(callback: Callback, lines: Iterator[str]) -> None:
    for line in lines:
        callback.on_message(line)


def _settle(
    given: Mapping[str, object], out: Path, name: str | None, storage: str | None
) -> tuple[StudyConfig, ImageData, Path]:
    """Return the full request, its images and the study's path; what cannot be is told here.

    Nothing has been trained yet.
    """
    config, old = _resolve(given, None if name is None else study_path(out, name))
    if old is not None:
        assert name is not None
        refuse_driven(study_path(out, name), old, storage)
    teacher_specs(config)
    data, config = load_data(config, out)
    if not config.space:
        config = replace(config, space=find_space(default_space(config.data, data.size)).text)
    refuse_sampler(config)
    name = free_name(out, data.name) if name is None else name
    path = study_path(out, name)
    config = _with_storage(config, storage, name, is_new=old is None)
    if old is not None:
        refuse_changes(name, old, config)
    else:
        recipes_of(config, out)
    reach(path, config, storage)
    return config, data, path


def _with_storage(
    config: StudyConfig, given: str | None, name: str, *, is_new: bool
) -> StudyConfig:
    """Return the request with where trials are kept: a new study has a name of its own there."""
    url = kept_url(given, config.storage, is_new=is_new)
    if url is None or not is_new:
        return config
    return replace(config, storage=url, storage_study=f"{name}-{uuid.uuid4().hex[:8]}")


def _as_before(plan: Plan, study: OpenStudy) -> Plan:
    """Return the plan with what an earlier run was asked for, where this one says nothing."""
    kept = study.facts()
    if plan.trials is None:
        plan = replace(plan, trials=cast("int | None", kept.get("trials")))
    if plan.flat_after is None:
        plan = replace(plan, flat_after=cast("int | None", kept.get("flat_after")))
    return plan


def _keep_teachers(teachers: Sequence[Model], config: StudyConfig, directory: Path) -> None:
    """Save the teachers that were trained or fine-tuned here; several are numbered."""
    for i, (teacher, spec) in enumerate(zip(teachers, teacher_specs(config), strict=True)):
        if spec.is_trained_here:
            number = f"-{i}" if len(teachers) > 1 else ""
            save_weights(bare(teacher.network), directory / f"teacher{number}.safetensors")


def _resolve(
    given: Mapping[str, object], path: Path | None
) -> tuple[StudyConfig, StudyConfig | None]:
    """Return the full request, and the one of the study at `path` when there is one."""
    old = read_config(path) if path is not None else None
    if "space" in given:
        given = {**given, "space": find_space(str(given["space"])).text}
    return config_of(given, old), old


@contextmanager
def _callbacks(
    study: OpenStudy, callback: Callback, ledger: Ledger, loggers: Loggers | None
) -> Iterator[Callbacks]:
    """Give what tells all of them, and close the loggers in the end."""
    callbacks = Callbacks([ledger, callback, *(() if loggers is None else loggers.open(study))])
    try:
        yield callbacks
    finally:
        callbacks.close()


def _start_from(study: OpenStudy, out: Path, callback: Callback) -> None:
    """Let a new study try the recipes of the one it starts from."""
    recipes = [] if study.records() or study.guesses() else recipes_of(study.config, out)
    if recipes:
        study.guess(recipes)
        callback.on_message(f"Tried first: {len(recipes)} recipes of {study.config.from_study}")


def _price(budget: Budget, context: TrialContext) -> Price | None:
    """Return what prices a draw, None where a price would turn nothing away."""
    return None if budget.flops is None and budget.params is None else StaticCosts(context.data)


def _search(
    study: OpenStudy,
    context: TrialContext,
    engine: Engine,
    callbacks: Callbacks,
    plan: Plan,
    *,
    total: int,
) -> None:
    def on_trial(record: TrialRecord) -> None:
        front = study.front()
        _keep_weights(study, front)
        callbacks.on_trial_end(record, front[-1] if front else None)

    callbacks.on_search_begin(searched(study.records()), total, budget=study.budget)
    enough = Ending(study, callbacks, time_limit=plan.time_limit, flat_after=plan.flat_after)
    price = _price(study.budget, context)
    source = search(study, n_trials=total, is_enough=enough, price=price)
    engine(Proposals(study, source, on_begin=callbacks.on_trial_begin, on_trial=on_trial))


def _told_before(study: OpenStudy, out: Path) -> Sequence[Curve]:
    """Return what the study that this one starts from foretells, where anything is stopped."""
    start = None if study.config.stopping == "off" else start_of(study.config, out)
    return () if start is None else foretelling(study, start)


class _RunTrial(Protocol):
    """Runs a trial on a bench, here or in a worker."""

    def __call__(
        self,
        candidate: Candidate,
        *,
        directory: Path,
        on_epoch: OnEpoch | None = None,
        on_rung: OnRung | None = None,
    ) -> TrialOutcome: ...


@contextmanager
def _engine(
    study: OpenStudy,
    context: TrialContext,
    callback: Callback,
    plan: Plan,
    earlier: Sequence[Curve],
) -> Iterator[Engine]:
    """Give what runs the trials, as many at a time as there are workers.

    On a GPU they are threads of this process, which share the images there, each with a stream of
    its own: processes would take turns. On a CPU several are processes of one thread each. With a
    timeout they are always processes, since a thread cannot be ended: a single one has all threads.
    """
    judge = Judge(study, images=len(context.data.val), earlier=earlier)
    if plan.on_ray is not None:
        actors = open_actors(
            plan.workers,
            study,
            plan.on_ray,
            device=context.device,
            timeout=plan.trial_timeout,
            on_epoch=callback.on_epoch,
            on_rung=judge,
        )
        with actors as engine:
            yield engine
        return
    unfinished = study.path / UNFINISHED
    context = replace(context, unfinished=unfinished)
    count = fitting(context) if plan.workers is None else plan.workers
    evaluate = partial(_evaluate, study, callback, judge)
    if plan.trial_timeout is None and (count == 1 or context.device.type == "cuda"):
        yield partial(
            local.run, evaluators=[partial(evaluate, partial(run_trial, context=context))] * count
        )
        return
    processes = open_workers(
        count,
        study.config,
        out=study.path.parent,
        device=context.device,
        unfinished=unfinished,
        threads=torch.get_num_threads() if count == 1 else 1,
        timeout=plan.trial_timeout,
    )
    with processes as pool:
        yield partial(
            local.run, evaluators=[partial(evaluate, worker.run_trial) for worker in pool]
        )


def _evaluate(
    study: OpenStudy, callback: Callback, on_rung: OnRung, run: _RunTrial, proposal: Proposal
) -> TrialOutcome:
    return run(
        Candidate.from_params(proposal.params),
        directory=study.directory(proposal.number),
        on_epoch=partial(callback.on_epoch, proposal.number),
        on_rung=None if proposal.kind else on_rung,
    )


def _keep_weights(study: OpenStudy, front: list[TrialRecord]) -> None:
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
        with suppress(OSError):  # a full disk has been told
            handler.close()
