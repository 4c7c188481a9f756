"""Run a study: load data and teacher, search, finalize.

This module orders the steps and stores their results; it decides nothing about a trial.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from kdsearch import tasks
from kdsearch.deploy.latency_model import LatencyModel
from kdsearch.deploy.pricing import StaticCosts
from kdsearch.deploy.targets import require_target
from kdsearch.engines import local
from kdsearch.engines.dispatch import Engine, TrialQueue, search
from kdsearch.engines.gpu_packing import fitting
from kdsearch.engines.processes import Worker
from kdsearch.engines.ray_actors import OnRay, open_actors
from kdsearch.errors import StudyInterruptedError, TrialsFailedError, printable
from kdsearch.hpo.halving import WINNER, Halving
from kdsearch.hpo.stopping import Curve
from kdsearch.models.features import bare
from kdsearch.models.model import Model
from kdsearch.models.weights import save_weights
from kdsearch.report.artifacts import write_derived
from kdsearch.report.dashboard import write_dashboard
from kdsearch.report.verdict import kept_by
from kdsearch.spec import Candidate, TrialRecord
from kdsearch.study.callbacks import Callback, Callbacks
from kdsearch.study.config import StudyConfig, resume_command
from kdsearch.study.early_stopping import OnRung, StudyPruner, earlier_curves
from kdsearch.study.loggers import Loggers
from kdsearch.study.open import open_study
from kdsearch.study.options import AUTO, RunOptions
from kdsearch.study.plan import about_plan, halving_of
from kdsearch.study.preparation import Preparation
from kdsearch.study.refit import refits_left, refits_to_come
from kdsearch.study.run_log import RunLog
from kdsearch.study.run_state import RunState
from kdsearch.study.stop_conditions import StopConditions
from kdsearch.study.study import OpenStudy, searched
from kdsearch.study.summary import Images
from kdsearch.study.trial_notes import Proposal, TrialOutcome
from kdsearch.study.warm_start import recipes_of, start_of
from kdsearch.teachers.evaluation import NEAREST, knows_none
from kdsearch.teachers.spec import teacher_specs
from kdsearch.trials.context import pick_device, prepare, teacher_at_chance_on
from kdsearch.trials.start import families_of, require_teacher
from kdsearch.trials.trial import UNFINISHED, WEIGHTS, TrialContext, run_trial
from kdsearch.version import VERSION
from kdsearch.workflows.finalize import finalize
from kdsearch.workflows.finished import Finalized, about_finished, finished
from kdsearch.workflows.resolve import (
    refit_in,
    resolve,
    resolved,
    with_earlier,
    with_usable_methods,
)
from kdsearch.workflows.rungs import climb, forget
from kdsearch.workflows.suppression import about_suppression, with_suppression

_VERSIONED = ("torch", "optuna", "timm", "onnxruntime")


def run_study(
    given: Mapping[str, object],
    callback: Callback,
    *,
    out: Path,
    name: str | None = None,
    options: RunOptions | None = None,
) -> Finalized:
    """Run a study, or resume the one of that name, and return what it found.

    given: the fields of StudyConfig that the user set; `space` is a name or a file. Other fields
    come from the study when there is one, else from the defaults. Raises BudgetError when nothing
    fits the budget, and another KDSearchError for a configuration that cannot run. A finished study
    is left as it is.
    """
    started = time.perf_counter()
    options = options or RunOptions()
    if found := finished(given, out, name, options):
        callback.on_message(about_finished(found))
        return found
    with Preparation(callback, started=started) as preparation:
        return _run(given, preparation, callback, out=out, name=name, options=options)


def _run(
    given: Mapping[str, object],
    preparation: Preparation,
    callback: Callback,
    *,
    out: Path,
    name: str | None,
    options: RunOptions,
) -> Finalized:
    started = preparation.started
    loggers = Loggers(options.log, callback=options.callback)
    wanted, on_ray = refit_in(options), _ray_in(options)
    device = pick_device(options.device)
    if on_ray is not None:
        on_ray.share(device)
    note, begin = callback.on_message, preparation.begin
    config, options, data, path = resolve(given, out, name, options, note, begin)
    preparation.begin(path)
    if options.until is not None:
        tasks.of(data).metric.require(options.until, "--until")
    callback.on_message(f"Results go to {path}")
    require_target(config).dry_run((data.channels, *data.size), callback.on_message)
    prepared = prepare(config, data, out=out, device=device, callback=preparation)
    require_teacher(families_of(config.search_space(), "teacher"), prepared.context.teachers)
    task = prepared.context.task
    metric = prepared.details.with_noise(task.metric_on(data.val.labels))
    chance = task.chance(data.val.labels)
    teachers = prepared.context.teachers
    which = config.teacher + NEAREST * knows_none(teachers)
    callback.on_message(f"Teacher {which}: validation {metric.text(prepared.teacher.val)}")
    if warning := teacher_at_chance_on(data, prepared.teacher.val, prepared.details):
        callback.on_message(warning)
    config, lines = with_usable_methods(config, teachers, task)
    config, limits = resolved(config, prepared.teacher)
    config = with_suppression(config, prepared.context)
    _note_each(callback, [*lines, *limits, *about_suppression(config)])
    wanted = wanted and replace(wanted, left_out=config.left_out)
    prepared = replace(prepared, context=replace(prepared.context, budget=config.budget))
    if not warning and (kept := kept_by(prepared.teacher, config.budget)):
        callback.on_message(kept)
    versions = {"kdsearch": VERSION} | {name: version(name) for name in _VERSIONED}
    opened = open_study(path, config, versions=versions, storage=options.storage, metric=metric)
    with opened as study, _log_to(path / "kdsearch.log"):
        options = with_earlier(options, study)
        halving = halving_of(config, len(data.train), trials=options.trials, spend=options.spend)
        total = halving.trials
        facts, teacher = study.facts, prepared.teacher
        study.update_facts(
            task=task.name,
            metric=metric,
            classes=data.classes,
            details={**facts.details, "teacher validation": prepared.details},
            images=Images(train=len(data.train), val=len(data.val), test=len(data.test)),
            chance=chance,
            teacher=teacher if facts.teacher is None else replace(teacher, test=facts.teacher.test),
            teacher_seconds=prepared.seconds if facts.teacher is None else facts.teacher_seconds,
            trials=total,
            spend=options.spend,
            flat_after=options.flat_after,
            until=options.until,
            refit=wanted or facts.refit,
            is_finished=False,
        )
        _note_each(callback, [*about_plan(halving), *refits_to_come(study, total)])
        _try_recipes(study, out, callback)
        _save_teachers(prepared.context.teachers, config, path / "teacher")
        try:
            with (
                RunLog(study, device=str(device), started=started) as run_log,
                closing(Callbacks([run_log, callback, *loggers.open(study)])) as callbacks,
                _open_engine(
                    study, prepared.context, callbacks, options, on_ray, _earlier_curves(study, out)
                ) as engine,
            ):
                preparation.end()
                stop = _search(study, prepared.context, engine, callbacks, options, halving)
                _note_each(callbacks, refits_left(study))
                found = finalize(
                    study,
                    prepared.context,
                    callbacks,
                    engine,
                    run_log=run_log,
                    with_baselines=options.baselines,
                )
            write_dashboard(study)
            shutil.rmtree(study.path / UNFINISHED, ignore_errors=True)
            study.update_facts(is_finished=not stop.is_cut_short())
            return found
        except TrialsFailedError:
            write_derived(study)
            raise
        except KeyboardInterrupt:
            write_derived(study)
            raise StudyInterruptedError(
                f"interrupted; {len(searched(study.records()))} of {total} trials are kept. "
                f"`{resume_command(path)}` resumes the study"
            ) from None


def _ray_in(options: RunOptions) -> OnRay | None:
    """Return where Ray is, None where trials run without it."""
    if options.engine != "ray":
        return None
    return OnRay(address=options.ray_address or "none", gpus_per_trial=options.gpus_per_trial)


def _note_each(callback: Callback, lines: Iterable[str]) -> None:
    for line in lines:
        callback.on_message(line)


def _save_teachers(teachers: Sequence[Model], config: StudyConfig, directory: Path) -> None:
    """Save the teachers that were trained or fine-tuned here; several are numbered."""
    for i, (teacher, spec) in enumerate(zip(teachers, teacher_specs(config), strict=True)):
        if spec.is_trained_here:
            number = f"-{i}" if len(teachers) > 1 else ""
            save_weights(bare(teacher.network), directory / f"teacher{number}.safetensors")


def _try_recipes(study: OpenStudy, out: Path, callback: Callback) -> None:
    """Let a new study try the recipes of the study it starts from."""
    recipes = [] if study.records() or study.facts.enqueued else recipes_of(study.config, out)
    if recipes:
        study.enqueue(recipes)
        callback.on_message(f"Tried first: {len(recipes)} recipes of {study.config.from_study}")


def _search(
    study: OpenStudy,
    context: TrialContext,
    engine: Engine,
    callbacks: Callbacks,
    options: RunOptions,
    halving: Halving,
) -> StopConditions:
    """Run the trials of the search, and return what could end it early."""
    # Trials that may have these files, so that a trial costs no system call for each earlier one.
    with_weights = with_checkpoint = searched(study.records())

    def on_trial(record: TrialRecord) -> None:
        nonlocal with_weights, with_checkpoint
        front = study.front()
        with_weights = _keep_weights(study, [*with_weights, record], front)
        earlier = [*with_checkpoint, record]
        with_checkpoint = forget(study, study.path / UNFINISHED, halving, earlier)
        callbacks.on_trial_end(record, front[-1] if front else None)

    def run(source: Iterator[Proposal]) -> None:
        begin = callbacks.on_trial_begin
        engine(TrialQueue(study, source, on_begin=begin, on_trial=on_trial))

    state = RunState(
        searched(study.records()),
        total=halving.trials,
        epochs=halving.total if halving.is_staged else 0,
        budget=study.budget,
    )
    callbacks.on_search_begin(state)
    stop = StopConditions(
        study,
        callbacks,
        time_limit=options.time_limit,
        flat_after=options.flat_after,
        until=options.until,
        search_share=1 - WINNER if halving.is_staged else 1.0,
    )
    is_priced = study.budget.flops is not None or study.budget.params is not None
    static = StaticCosts(context.data)
    price = static if is_priced else None
    latencies = None
    if study.budget.latency_ms is not None:
        here = None if options.engine == "ray" else context.latencies
        latencies = LatencyModel(static, context.data, study.budget, here)
    trials = halving.trials
    run(search(study, n_trials=trials, is_enough=stop, price=price, latencies=latencies))
    climb(study, halving, run, stop, note=callbacks.on_message)
    return stop


def _earlier_curves(study: OpenStudy, out: Path) -> Sequence[Curve]:
    """Return learning curves of the study that this one starts from, for early stopping."""
    start = None if study.config.pruning == "off" else start_of(study.config, out)
    return () if start is None else earlier_curves(study, start)


@contextmanager
def _open_engine(
    study: OpenStudy,
    context: TrialContext,
    callback: Callback,
    options: RunOptions,
    on_ray: OnRay | None,
    earlier: Sequence[Curve],
) -> Iterator[Engine]:
    """Open what runs the trials, as many at a time as there are workers.

    On a GPU they are threads of this process, each with its stream: processes would take turns. On
    a CPU several are processes of one thread each; with a timeout one is a process of all threads.
    """
    pruner = StudyPruner(study, images=len(context.data.val), earlier=earlier)
    count = None if options.workers == AUTO else int(options.workers)
    if on_ray is not None:
        callback.on_message("Starting workers on Ray")
        actors = open_actors(
            count,
            study,
            on_ray,
            device=context.device,
            timeout=options.trial_timeout,
            on_epoch=callback.on_epoch,
            pruner=pruner.rule,
        )
        with actors as engine:
            yield engine
        return
    context = replace(context, unfinished=study.path / UNFINISHED)
    count = count or fitting(context)
    evaluate = partial(_evaluate, study, callback, pruner)
    if options.trial_timeout is None and (count == 1 or context.device.type == "cuda"):
        here = partial(evaluate, partial(run_trial, context=context))
        yield partial(local.run, evaluators=[here] * count)
        return
    callback.on_message(f"Starting worker processes: {count}")
    worker = partial(
        Worker,
        study.config,
        out=study.path.parent,
        device=context.device,
        unfinished=context.unfinished,
        threads=torch.get_num_threads() if count == 1 else 1,
        timeout=options.trial_timeout,
    )
    with ExitStack() as stack:
        workers = [stack.enter_context(worker()) for _ in range(count)]
        yield partial(local.run, evaluators=[partial(evaluate, each.run_trial) for each in workers])


def _evaluate(
    study: OpenStudy,
    callback: Callback,
    on_rung: OnRung,
    run: Callable[..., TrialOutcome],
    proposal: Proposal,
) -> TrialOutcome:
    """Run a trial, by `run_trial` in this process or in a worker."""
    return run(
        Candidate.from_params(proposal.params),
        directory=study.directory(proposal.number),
        on_epoch=partial(callback.on_epoch, proposal.number),
        on_rung=None if proposal.kind else on_rung,
        pause_at=proposal.pause_at,
    )


def _keep_weights(
    study: OpenStudy, records: Sequence[TrialRecord], front: list[TrialRecord]
) -> list[TrialRecord]:
    """Delete the weights of trials that a training in full dominates; return the other trials.

    The metric of a paused training may fall, and then what it dominated is on the front.
    """
    kept = {record.number for record in front}
    final = [study.point(record) for record in front if len(record.curve) == record.epochs]
    left = []
    for record in {record.number: record for record in searched(records)}.values():
        is_beaten = record.state != "complete" or any(
            quality >= study.point(record)[0] and cost <= study.point(record)[1]
            for quality, cost in final
        )
        if record.number in kept or not is_beaten:
            left.append(record)
        else:
            (study.directory(record.number) / WEIGHTS).unlink(missing_ok=True)
    return left


class _LogFile(logging.FileHandler):
    """The log of a study, without the control characters of reasons and names."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), keep="\n\t")

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - of the base class
        """Print nothing: a disk that refuses the log refuses the study, which says so."""


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Append kdsearch's log to a file; tracebacks of failed trials are there."""
    handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger = logging.getLogger("kdsearch")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        with suppress(OSError):  # a full disk was reported before
            handler.close()
