"""Ship another trial of a study on purpose: export it to best/, evaluate it, write the report.

The search, its controls and their gains stay as they are. The earlier best/ moves to exported/.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from math import inf
from pathlib import Path

import torch

from kdsearch import tasks
from kdsearch.data.base import ImageData
from kdsearch.deploy import model_card
from kdsearch.deploy.latency import LatencyCache
from kdsearch.deploy.package import Package, pack, read_package
from kdsearch.deploy.pricing import load_student
from kdsearch.deploy.targets import require_target
from kdsearch.errors import BudgetError, SpecError, StudyError
from kdsearch.report.artifacts import write_derived
from kdsearch.report.findings import about_classes
from kdsearch.spec import Candidate, StudentSpec, TrialRecord
from kdsearch.study.callbacks import Callback
from kdsearch.study.config import read_config
from kdsearch.study.open import find_storage, load_study, open_study
from kdsearch.study.refit import BEST as ACCURATE
from kdsearch.study.refit import KNEE, roles
from kdsearch.study.study import OpenStudy
from kdsearch.training.validation import evaluate_in_detail
from kdsearch.trials.context import CACHE, load_data
from kdsearch.trials.trial import WEIGHTS
from kdsearch.workflows.export import record_of
from kdsearch.workflows.finalize import Export, findings_of
from kdsearch.workflows.finished import BEST, Finalized, set_aside
from kdsearch.workflows.latencies import with_latency_of_file
from kdsearch.workflows.shipped import state_results, teacher_of

_CPU = torch.device("cpu")
_TRIED = ".tried"  # the same folder until its file has been measured


def ship_trial(
    path: Path,
    callback: Callback,
    *,
    out: Path,
    trial: int | None = None,
    pick: str | None = None,
    storage: str | None = None,
) -> Finalized:
    """Ship one trial of the study at `path`, whose weights are kept.

    trial: its number. pick: instead of it, `accurate`, `knee` or `fastest`, a place on the front.
    storage: see `open_study`. Raises SpecError for a trial without weights or off the front,
    BudgetError where its file is over the budget, and StudyError where the images have changed;
    best/ is then as before.
    """
    config = read_config(path)
    if config is None:
        raise StudyError(f"there is no study at {path}: no study.yaml")
    if storage is not None:
        find_storage(path, storage)
    known = load_study(path, storage)
    export = _chosen(known, _picked(known, pick) if trial is None else trial)
    data, found = load_data(config, out, callback.on_message)
    if config.data_key and found.data_key != config.data_key:
        raise StudyError(f"the images of {config.data!r} are no longer those of the study {path}")
    latencies = LatencyCache(out / CACHE, require_target(config))
    opened = open_study(path, config, versions={}, storage=storage, metric=known.metric)
    with opened as study:
        package = _exported(study, export, data, latencies, callback.on_message)
        costs = with_latency_of_file(study, export.weights, package.latency)
        study.update_facts(costs=costs)
        _evaluate(study, export.weights, data)
        findings = findings_of(study, export, len(data.val))
        on_purpose = f"Trial {export.weights.number} ships by `kdsearch ship`, not by its metric."
        classes = filter(None, [about_classes(study, export.weights)])
        study.update_facts(notes=(on_purpose, *findings, *classes))
        state_results(study, export.weights, package.path, findings, data)
        return Finalized(
            path=path, summary=write_derived(study), package=package, notes=study.facts.notes
        )


def _picked(study: OpenStudy, pick: str | None) -> int:
    """Return the trial at a place of the front. Raises SpecError without a front."""
    front = study.front()
    if not front:
        raise SpecError(f"the study {study.name!r} has no trial to ship; see `kdsearch status`")
    if pick == "fastest":
        return front[0].number
    role = KNEE if pick == "knee" else ACCURATE
    return next(number for number, found in roles(study).items() if role in found)


def _chosen(study: OpenStudy, number: int) -> Export:
    """Return a training and its trial of the front. Raises SpecError for another."""
    weights = record_of(study, number)
    front = {record.number: record for record in study.front()}
    of = next((n for n in (number, weights.control_of, weights.refit_of) if n in front), None)
    if of is None:
        raise SpecError(
            f"--trial {number} is not on the front, nor a control or refit of a trial there; give "
            f"--trial {' or '.join(map(str, front)) or 'of a study with a front'}"
        )
    return Export(front=front[of], weights=weights)


def _exported(
    study: OpenStudy,
    export: Export,
    data: ImageData,
    latencies: LatencyCache,
    note: Callable[[str], None],
) -> Package:
    """Write best/ from a training, unless it is there; what was there is kept."""
    best, number = study.path / BEST, export.weights.number
    kept = read_package(best) if study.facts.shipped == number else None
    if kept is not None:
        note(f"Trial {number} is in best/ already")
        return kept
    note(f"Exporting trial {number}, and measuring its file")
    assert export.front.cost is not None
    package = pack(
        study.path / _TRIED,
        load_student(_spec(export.weights), data, _weights(study, export.weights)),
        Candidate.from_params(export.weights.params),
        study.config,
        data,
        cost=export.front.cost,
        results={"validation": export.weights.val or 0.0},
        teacher=teacher_of(study),
        latencies=latencies,
        limit=inf if study.budget.latency_ms is None else None,
        taught_epochs=export.weights.taught_epochs,
    )
    if not package.is_within(study.budget):
        shutil.rmtree(package.path)
        raise BudgetError(
            f"trial {number} was not shipped: its file took {package.took}, over the budget of "
            f"{study.config.budget_ms} ms; ship another, or is the machine busy?"
        )
    rights = model_card.rights_of(best)
    set_aside(study, note)
    package.path.rename(best)
    model_card.name_rights(best, **rights)
    study.update_facts(best=export.front.number, shipped=number)
    return replace(package, path=best)


def _evaluate(study: OpenStudy, ships: TrialRecord, data: ImageData) -> None:
    """Evaluate what ships on test, where that has not been done, and store its details."""
    facts, task = study.facts, tasks.of(data)
    test, details = dict(facts.test), dict(facts.details)
    student = load_student(_spec(ships), data, _weights(study, ships))
    for split, images in (("test", data.test), ("validation", data.val)):
        key = f"{ships.number} {split}"
        if key not in details or (split == "test" and ships.number not in test):
            found = evaluate_in_detail(student, images, task, _CPU)
            details[key] = found.details
            if split == "test":
                test[ships.number] = found.value
    metric = details[f"{ships.number} validation"].with_noise(study.metric)
    study.update_facts(test=test, details=details, metric=metric)


def _spec(record: TrialRecord) -> StudentSpec:
    return Candidate.from_params(record.params).student


def _weights(study: OpenStudy, record: TrialRecord) -> Path:
    number = record.number if record.reused_from is None else record.reused_from
    return study.directory(number) / WEIGHTS
