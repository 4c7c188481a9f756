"""What follows the search: the test split, the file to ship, its controls, what they tell."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

from kdsearch.deploy import model_card
from kdsearch.deploy.package import Package, pack
from kdsearch.deploy.pricing import build_student
from kdsearch.engines.dispatch import Engine, Proposals
from kdsearch.errors import BudgetError, TrialsFailedError
from kdsearch.models.features import bare
from kdsearch.models.model import Model
from kdsearch.models.weights import fit_weights, read_weights
from kdsearch.report.artifacts import summarise, write_derived
from kdsearch.report.findings import CONTROLS, about_controls, about_refits, about_test
from kdsearch.space import Params
from kdsearch.spec import Candidate, TrialRecord
from kdsearch.study.callbacks import Callback
from kdsearch.study.config import resume_command
from kdsearch.study.ledger import Ledger
from kdsearch.study.refit import (
    middle,
    missing,
    summarised,
    trained,
)
from kdsearch.study.spend import ENDED, spent
from kdsearch.study.study import OpenStudy, Proposal, searched
from kdsearch.study.summary import Images, Summary
from kdsearch.training.validation import evaluate
from kdsearch.trials.context import CACHE, evaluate_teachers
from kdsearch.trials.trial import WEIGHTS, TrialContext
from kdsearch.workflows.baselines import measure_baselines

BEST = "best"  # the folder to ship
_TRIED = ".tried"  # where one stands until its file has been measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalized:
    """What a study found, and the folder to ship."""

    path: Path
    summary: Summary
    package: Package
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """A trial of the front, and the training of its student whose weights may be shipped."""

    record: TrialRecord
    weights: TrialRecord


_Shipped: TypeAlias = tuple[_Way, Package]


def _weights(study: OpenStudy, record: TrialRecord) -> Path:
    number = record.number if record.reused_from is None else record.reused_from
    return study.directory(number) / WEIGHTS


def finalize(
    study: OpenStudy, context: TrialContext, callback: Callback, engine: Engine, *, ledger: Ledger
) -> Finalized:
    """Train controls, and refits where those are asked for; ship the best of all; write the report.

    The test split is read when that choice has been made.
    ledger: is closed before the report tells what was spent. Raises BudgetError when nothing fits,
    also when the files are measured again, and TrialsFailedError when no trial completed.
    """
    started = time.perf_counter()
    training = 0.0

    def timed(proposals: Proposals) -> None:
        nonlocal training
        began = time.perf_counter()
        engine(proposals)
        training += time.perf_counter() - began

    try:
        if not study.front():
            raise _nothing(study)
        _note_surroundings(study, context, callback)
        follow = _with_refits if study.facts.refit.count else _with_controls
        way, package = follow(study, context, callback, timed)
        _read_test(
            study, context, [*study.front(), *trained(study), *_controls_of(study, way.record)]
        )
    except (BudgetError, TrialsFailedError):
        ledger.end(ENDED)
        write_derived(study)
        raise
    ledger.end(ENDED)
    judged = _judged(study, way, len(context.data.val))
    notes = (*_skipped(context), *judged, about_test(study), str(spent(study)))
    seconds = time.perf_counter() - started - training
    study.update_facts(notes=notes, finish_seconds=seconds)
    told = {
        context.task.metric.key: _results(study, way.weights),
        "teacher": _teacher(study),
    }
    model_card.update(package.path, **told, notes=judged, seeds=_seeds(study))
    return Finalized(path=study.path, summary=write_derived(study), package=package, notes=notes)


def _with_controls(
    study: OpenStudy, context: TrialContext, callback: Callback, engine: Engine
) -> _Shipped:
    """Ship the most accurate of the front, or that of its controls which beats it."""
    ways = [_Way(record=r, weights=r) for r in reversed(study.front())]
    found = _ship(study, context, callback, ways)
    if found is None:
        raise _too_slow(study, ways)
    best = found[0].record
    _train_controls(study, engine, best, callback)
    winner = max([best, *_controls_of(study, best)], key=lambda record: record.val or 0.0)
    if winner is best:
        return found
    return _ship(study, context, callback, [_Way(record=best, weights=winner)]) or found


def _with_refits(
    study: OpenStudy, context: TrialContext, callback: Callback, engine: Engine
) -> _Shipped:
    """Train the best candidates and their controls again, and ship the best recipe by its mean.

    Where the files of none of them keep the budget, the rest of the front follows.
    """
    front = study.front()
    _train(study, engine, missing(study, study.facts.refit), callback, best=front[-1])
    records = {record.number: record for record in study.records()}
    recipes = {
        each.trial: max(each.recipes(), key=lambda recipe: recipe.val.mean)
        for each in summarised(study)[0]
    }
    ranked = sorted(recipes, key=lambda trial: -recipes[trial].val.mean)
    ways = [_Way(record=records[n], weights=records[middle(recipes[n])]) for n in ranked]
    ways += [_Way(record=r, weights=r) for r in reversed(front) if r.number not in recipes]
    found = _ship(study, context, callback, ways)
    if found is None:
        raise _too_slow(study, ways)
    return found


def _judged(study: OpenStudy, way: _Way, n_val: int) -> tuple[str, ...]:
    """Return what the controls and refits of the best say, in words."""
    if study.facts.refit.count:
        return tuple(about_refits(study, way.record.number))
    controls = _controls_of(study, way.record)
    return tuple(about_controls(study, way.record, controls, n_val, shipped=way.weights.number))


def _note_surroundings(study: OpenStudy, context: TrialContext, callback: Callback) -> None:
    """Note what the report shows beside the trials: baselines, numbers of images."""
    baselines = study.facts.baselines
    if baselines is None:
        cache = study.path.parent / CACHE
        baselines = tuple(measure_baselines(context, cache, callback.on_message))
    images = Images(val=len(context.data.val), test=len(context.data.test))
    study.update_facts(baselines=baselines, images=images)


def _nothing(study: OpenStudy) -> BudgetError | TrialsFailedError:
    """Say why the front is empty: nothing is accurate enough or in the budget, or all failed."""
    if complete := study.complete():
        best = max(complete, key=lambda record: record.val or 0.0)
        return BudgetError(
            f"no student reaches --min-accuracy {study.config.min_accuracy}: the most accurate of "
            f"{len(complete)}, no. {best.number}, has {100 * (best.val or 0.0):.2f} % on "
            "validation. Train longer (--epochs), raise the budget, or ask for less, with another "
            "--name."
        )
    records = searched(study.records())
    tried = [*records, *(r for r in study.records() if r.rejected_early)]
    priced = [r for r in tried if r.state == "rejected" and r.cost is not None]
    if not priced:
        reasons = Counter(record.reason for record in records).most_common(3)
        told = "\n".join(f"  {count} x {reason}" for reason, count in reasons)
        return TrialsFailedError(
            f"no trial of {len(records)} completed:\n{told}\nDetails: {study.path / 'kdsearch.log'}"
        )
    cheapest = min(priced, key=lambda record: sum(max(0, v) for v in record.violations.values()))
    return BudgetError(
        f"nothing fits the budget: all {len(priced)} students broke it. The cheapest seen, "
        f"no. {cheapest.number} ({cheapest.params['student.family']}): {cheapest.reason}. "
        "Raise the budget, or give a --space with smaller students."
    )


def _load_student(study: OpenStudy, record: TrialRecord, context: TrialContext) -> Model:
    student = build_student(Candidate.from_params(record.params).student, context.data)
    file = _weights(study, record)
    fit_weights(bare(student.network), read_weights(file), where=f"trial {record.number}")
    return student.freeze()


def _read_test(study: OpenStudy, context: TrialContext, records: Sequence[TrialRecord]) -> None:
    """Measure on the test split whatever has not been yet, the teacher included."""
    teacher, test = study.facts.teacher_entry(), dict(study.facts.test)
    data, task, device = context.data.test, context.task, context.device
    if teacher.test is None:
        teacher = replace(teacher, test=evaluate_teachers(context.teachers, data, task, device))
    for record in records:
        if record.number not in test:
            student = _load_student(study, record, context).to(device)
            test[record.number] = evaluate(student, data, task, device)
    study.update_facts(test=test, teacher=teacher)


def _results(study: OpenStudy, record: TrialRecord) -> dict[str, float]:
    assert record.val is not None
    return {"validation": record.val, "test": study.facts.test[record.number]}


def _ship(
    study: OpenStudy, context: TrialContext, callback: Callback, ways: Sequence[_Way]
) -> _Shipped | None:
    """Put the first into best/ whose file, measured again, keeps the budget; None where none does.

    A student is measured once: of several tries one might keep it by chance.
    """
    for way in ways:
        assert way.record.cost is not None
        package = pack(
            study.path / _TRIED,
            _load_student(study, way.weights, context),
            Candidate.from_params(way.weights.params),
            study.config,
            context.data,
            cost=way.record.cost,
            results={"validation": way.weights.val or 0.0},
            teacher=_teacher(study),
            latencies=context.latencies,
        )
        if package.is_within(study.budget):
            shutil.rmtree(study.path / BEST, ignore_errors=True)
            package.path.rename(study.path / BEST)
            study.update_facts(best=way.record.number, shipped=way.weights.number)
            return way, replace(package, path=study.path / BEST)
        shutil.rmtree(package.path)
        callback.on_message(
            f"Trial {way.weights.number} is not shipped: its file took {package.latency}, "
            f"over the budget of {study.budget.latency_ms} ms"
        )
    return None


def _too_slow(study: OpenStudy, ways: Sequence[_Way]) -> BudgetError:
    """Take an earlier run's best/ away, which was measured in another hour; return why."""
    shutil.rmtree(study.path / BEST, ignore_errors=True)
    return BudgetError(
        f"none of the {len(ways)} exported students on the front kept the budget of "
        f"{study.budget.latency_ms} ms when measured again; is the machine busy? "
        f"`{resume_command(study.path)}` measures them again."
    )


def _controls_of(study: OpenStudy, best: TrialRecord) -> list[TrialRecord]:
    """Return the controls of a trial that completed."""
    mine = [r for r in study.records() if r.kind == "control" and r.control_of == best.number]
    return [record for record in mine if record.state == "complete"]


def _train_controls(
    study: OpenStudy, engine: Engine, best: TrialRecord, callback: Callback
) -> None:
    """Train the best student as each control is taught, with the same recipe."""
    student = {k: v for k, v in best.params.items() if not k.startswith("method.")}

    def source() -> Iterator[Proposal]:
        for method in CONTROLS:
            params: Params = {**student, "method.name": method}
            if all(record.params != params for record in _controls_of(study, best)):
                callback.on_message(
                    f"Control for no. {best.number}: the same student with method {method}"
                )
                yield study.ask_control(params, best.number)

    _train(study, engine, source(), callback, best=best)


def _train(
    study: OpenStudy,
    engine: Engine,
    source: Iterator[Proposal],
    callback: Callback,
    *,
    best: TrialRecord,
) -> None:
    """Run trials outside the search; an equal one stands for another while its weights are kept."""

    def earlier(proposal: Proposal) -> TrialRecord | None:
        found = study.earlier(proposal)
        return found if found is not None and _weights(study, found).is_file() else None

    on_trial = partial(callback.on_trial_end, best=best)
    engine(
        Proposals(
            study, source, on_begin=callback.on_trial_begin, on_trial=on_trial, earlier=earlier
        )
    )


def _seeds(study: OpenStudy) -> dict[str, object]:
    """Return what the shipped recipe came to under several seeds, nothing without them."""
    recipe = summarise(study).best_recipe()
    spreads = {} if recipe is None else {"validation": recipe.val, "test": recipe.test}
    return {split: asdict(spread) for split, spread in spreads.items() if spread is not None}


def _teacher(study: OpenStudy) -> dict[str, object]:
    teacher = study.facts.teacher_entry()
    return {"name": study.config.teacher, "validation": teacher.val, "test": teacher.test}


def _skipped(context: TrialContext) -> Iterator[str]:
    skipped = context.data.skipped
    if skipped:
        shown = ", ".join(skipped[:3]) + (", …" if skipped[3:] else "")
        yield f"{len(skipped)} unreadable images were left out: {shown}"
