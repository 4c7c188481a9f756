"""Finalize a study: train controls or refits, export the best student, test it, write the report.

The files of best/ come from the student with the best validation metric whose exported file keeps
the latency budget when it is measured again. The test split is read after that choice.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path

from kdsearch.deploy import model_card
from kdsearch.deploy.package import Package, pack, read_package
from kdsearch.deploy.pricing import load_student
from kdsearch.engines.dispatch import Engine, TrialQueue
from kdsearch.errors import BudgetError, SpecError, StudyError, TrialsFailedError
from kdsearch.models.model import Model
from kdsearch.report.artifacts import summarise, write_derived
from kdsearch.report.findings import (
    CONTROLS,
    about_classes,
    about_controls,
    about_refits,
    about_test,
)
from kdsearch.spec import Candidate, TrialRecord
from kdsearch.study.callbacks import Callback
from kdsearch.study.config import resume_command
from kdsearch.study.facts import candidate_digest
from kdsearch.study.first_trials import method_at_defaults
from kdsearch.study.formatting import SPACE, counted
from kdsearch.study.plan import about_epochs
from kdsearch.study.refit import middle, missing, summarised, trained
from kdsearch.study.run_log import ENDED, RunLog, spent
from kdsearch.study.stop_conditions import how_far
from kdsearch.study.study import OpenStudy
from kdsearch.study.trial_notes import Proposal
from kdsearch.teachers.evaluation import evaluate_teachers
from kdsearch.training.validation import evaluate_in_detail
from kdsearch.trials.context import CACHE
from kdsearch.trials.trial import WEIGHTS, TrialContext
from kdsearch.workflows.baselines import measure_baselines
from kdsearch.workflows.finished import BEST, Finalized, empty_front, set_aside
from kdsearch.workflows.latencies import measure_latencies
from kdsearch.workflows.picture import write_picture
from kdsearch.workflows.rungs import with_method
from kdsearch.workflows.shipped import state_results, teacher_of
from kdsearch.workflows.suppression import about_suppression

_TRIED = ".tried"  # the same folder until its file has been measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """A trial of the front, and the trial that trained the weights to export for it.

    The two differ where a control or a refit of the trial has the better weights.
    """

    front: TrialRecord
    weights: TrialRecord


def finalize(
    study: OpenStudy,
    context: TrialContext,
    callback: Callback,
    engine: Engine,
    *,
    run_log: RunLog,
    with_baselines: bool,
) -> Finalized:
    """Train controls or refits, export the best student to best/, test it and write the report.

    with_baselines: also count common networks for the report, which imports timm. Closes `run_log`
    before the report states the time spent. Raises BudgetError when no student is within the
    budget, or no exported file is, and TrialsFailedError when no trial completed.
    """
    steps = _Steps(study, context, callback, engine)
    started = time.perf_counter()
    try:
        if not study.front():
            raise empty_front(study)
        if with_baselines and study.facts.baselines is None:
            steps.note_baselines()
        export, package = steps.export_refits() if study.facts.refit.count else steps.export_best()
        controls = [c for c in _controls(study, export.front) if steps.has_weights(c)]
        shown = [*study.front(), *trained(study), *controls]
        steps.evaluate_on_test(shown)
        steps.evaluate_shipped(export.weights)
        steps.show(export.weights, package.path)
        shipped = export.front, package.latency
        measure_latencies(study, context, shown, shipped=shipped, note=callback.on_message)
    except (BudgetError, TrialsFailedError):
        run_log.end(ENDED)
        write_derived(study)
        raise
    run_log.end(ENDED)
    findings = findings_of(study, export, len(context.data.val))
    notes = (
        *_skipped(context),
        *findings,
        *filter(None, [about_classes(study, export.weights)]),
        *([how_far(study, export.weights, until)] if (until := study.facts.until) else []),
        about_test(study),
        *about_suppression(study.config),
        *([about_epochs(summarise(study).epochs)] if study.config.look_epochs else []),
        str(spent(study)),
    )
    seconds = time.perf_counter() - started - steps.training_seconds
    study.update_facts(notes=notes, finish_seconds=seconds)
    state_results(study, export.weights, package.path, findings, context.data)
    return Finalized(path=study.path, summary=write_derived(study), package=package, notes=notes)


class _Steps:
    """The steps of `finalize`, on one study. training_seconds: spent in the engine."""

    def __init__(
        self, study: OpenStudy, context: TrialContext, callback: Callback, engine: Engine
    ) -> None:
        self._study = study
        self._context = context
        self._callback = callback
        self._engine = engine
        self.training_seconds = 0.0
        self._has_exported = False
        self._lost: list[int] = []  # trials without readable weights

    def note_baselines(self) -> None:
        """Store the costs of the baselines, for the report."""
        cache_dir, note = self._study.path.parent / CACHE, self._callback.on_message
        self._study.update_facts(baselines=measure_baselines(self._context, cache_dir, note))

    def export_best(self) -> tuple[Export, Package]:
        """Train controls of the best exportable trial; export the best of them and the trial.

        Without a latency budget every file is within it, and the export waits for the controls.
        """
        study, front = self._study, self._study.front()
        if study.budget.latency_ms is None:
            self._train_controls(front[-1])
        found = self._require_export(
            [Export(front=each, weights=_better(study, each)) for each in reversed(front)]
        )
        best = found[0].front
        self._train_controls(best)
        winner = _better(study, best)
        if winner == found[0].weights:
            return found
        return self._export_first([Export(front=best, weights=winner)]) or found

    def export_refits(self) -> tuple[Export, Package]:
        """Train the refits that are missing; export the recipe with the best mean.

        The rest of the front follows, for the case that no file of these keeps the budget.
        """
        front = self._study.front()
        self._train(missing(self._study, self._study.facts.refit), best=front[-1])
        records = {record.number: record for record in self._study.records()}
        recipes = {
            candidate.trial: max(candidate.recipes(), key=lambda recipe: recipe.val.mean)
            for candidate in summarised(self._study)[0]
        }
        ranked = sorted(recipes, key=lambda trial: -recipes[trial].val.mean)
        return self._require_export(
            [Export(front=records[n], weights=records[middle(recipes[n])]) for n in ranked]
            + [Export(front=r, weights=r) for r in reversed(front) if r.number not in recipes]
        )

    def evaluate_on_test(self, records: Sequence[TrialRecord]) -> None:
        """Evaluate the teachers and the trials on the test split, each once in a study's life."""
        context, facts = self._context, self._study.facts
        images, task, device = context.data.test, context.task, context.device
        students = counted(len(records), "student").replace(SPACE, " ")
        self._callback.on_message(f"Evaluating the teacher and {students} on the test split")
        teacher, test, details = facts.teacher_entry(), dict(facts.test), dict(facts.details)
        if teacher.test is None:
            found = evaluate_teachers(context.teachers, images, context.data, task, device)
            teacher, details["teacher test"] = replace(teacher, test=found.value), found.details
        for record in records:
            student = None if record.number in test else self._load_kept(record)
            if student is not None:
                student = student.to(device)
                found = evaluate_in_detail(student, images, task, device)
                test[record.number] = found.value
                details[f"{record.number} test"] = found.details
        self._study.update_facts(test=test, teacher=teacher, details=details)

    def evaluate_shipped(self, record: TrialRecord) -> None:
        """Store the details of the shipped student on validation, and its noise there.

        Until then the noise was the teacher's.
        """
        key, context = f"{record.number} validation", self._context
        if key not in self._study.facts.details:
            student = self._load_student(record).to(context.device)
            found = evaluate_in_detail(student, context.data.val, context.task, context.device)
            details = {**self._study.facts.details, key: found.details}
            self._study.update_facts(details=details)
        metric = self._study.facts.details[key].with_noise(self._study.metric)
        self._study.update_facts(metric=metric)

    def show(self, record: TrialRecord, folder: Path) -> None:
        """Draw validation images with the answers of teachers and shipped student."""
        if (student := self._load_kept(record)) is not None:
            write_picture(folder, student, self._context)

    def _require_export(self, exports: Sequence[Export]) -> tuple[Export, Package]:
        """Return the first that can be exported. Raises BudgetError where none can."""
        if (found := self._export_first(exports)) is not None:
            return found
        lost, limit = self._lost, self._study.config.budget_ms
        if lost and (limit is None or len(lost) >= len(exports)):
            raise StudyError(
                f"the weights of trials {', '.join(map(str, lost))}, all that could be exported, "
                "are missing or damaged; restore them, or train others with a larger --trials"
            )
        kept = "; best/ is still that of an earlier run" * (self._study.path / BEST).is_dir()
        raise BudgetError(
            f"none of the {len(exports) - len(lost)} exported students on the front kept the "
            f"budget of {limit} ms when measured again; is the machine busy? "
            f"`{resume_command(self._study.path)}` measures them again{kept}."
        )

    def _export_first(self, exports: Sequence[Export]) -> tuple[Export, Package] | None:
        """Write best/ from the first whose file keeps the budget; None where no file does.

        Each file is measured once: repeated tries would let one pass by chance. A student that an
        earlier run shipped is not exported again.
        """
        study, best = self._study, self._study.path / BEST
        for export in exports:
            kept = read_package(best) if export.weights.number == study.facts.shipped else None
            if kept is not None:
                study.update_facts(best=export.front.number)
                return export, kept
            student = self._load_kept(export.weights)
            if student is None and export.weights.kind == "control":
                export = replace(export, weights=export.front)
                student = self._load_kept(export.front)
            if student is None:
                continue
            assert export.front.cost is not None
            number = export.weights.number
            self._callback.on_message(f"Exporting trial {number}, and measuring its file")
            package = pack(
                study.path / _TRIED,
                student,
                Candidate.from_params(export.weights.params),
                study.config,
                self._context.data,
                cost=export.front.cost,
                results={"validation": _val(export.weights)},
                teacher=teacher_of(study),
                latencies=self._context.latencies,
                limit=inf if study.budget.latency_ms is None else None,
                taught_epochs=export.weights.taught_epochs,
            )
            if package.is_within(study.budget):
                rights = model_card.rights_of(best)
                if self._has_exported:
                    shutil.rmtree(best)
                set_aside(study, self._callback.on_message)
                package.path.rename(best)
                model_card.name_rights(best, **rights)
                self._has_exported = True
                study.update_facts(best=export.front.number, shipped=number)
                return export, replace(package, path=best)
            shutil.rmtree(package.path)
            self._callback.on_message(
                f"Trial {number} is not exported: its file took {package.took}, "
                f"over the budget of {study.config.budget_ms} ms"
            )
        return None

    def _train_controls(self, best: TrialRecord) -> None:
        """Train the student of a trial with the method of each control, by the same recipe.

        Nothing where controls were first looks, or where a spend has none for them.
        """
        if self._study.config.look_epochs is not None or self._study.facts.spend is not None:
            return
        space = self._study.config.search_space()

        def source() -> Iterator[Proposal]:
            for method in self._study.config.controls(CONTROLS):
                params = with_method(best.params, method_at_defaults(space, method))
                if candidate_digest(params) == best.digest:
                    continue
                if all(record.params != params for record in _controls(self._study, best)):
                    self._callback.on_message(
                        f"Control for trial {best.number}: the same student with method {method}"
                    )
                    yield self._study.ask_control(params, best.number)

        self._train(source(), best=best)

    def _train(self, source: Iterator[Proposal], *, best: TrialRecord) -> None:
        """Run trials after the search; reuse an equal earlier one only if its weights are kept."""

        def earlier(proposal: Proposal) -> TrialRecord | None:
            found = self._study.earlier(proposal)
            return found if found is not None and self.has_weights(found) else None

        began = time.perf_counter()
        self._engine(
            TrialQueue(
                self._study,
                source,
                on_begin=self._callback.on_trial_begin,
                on_trial=partial(self._callback.on_trial_end, best=best),
                earlier=earlier,
            )
        )
        self.training_seconds += time.perf_counter() - began

    def _load_student(self, record: TrialRecord) -> Model:
        spec = Candidate.from_params(record.params).student
        return load_student(spec, self._context.data, self._weights(record))

    def _load_kept(self, record: TrialRecord) -> Model | None:
        """Return a student, None where its weights are missing or damaged; a message says so."""
        try:
            return self._load_student(record)
        except SpecError as error:
            if record.number not in self._lost:
                self._lost.append(record.number)
                self._callback.on_message(f"Trial {record.number} is left out: {error}")
            return None

    def has_weights(self, record: TrialRecord) -> bool:
        """Return whether the weights of a training are kept; a first look may have lost its own."""
        return self._weights(record).is_file()

    def _weights(self, record: TrialRecord) -> Path:
        number = record.number if record.reused_from is None else record.reused_from
        return self._study.directory(number) / WEIGHTS


def _val(record: TrialRecord) -> float:
    return record.val or 0.0


def _controls(study: OpenStudy, best: TrialRecord) -> list[TrialRecord]:
    """Return the complete controls of a trial."""
    controls = [r for r in study.records() if r.kind == "control" and r.state == "complete"]
    return [record for record in controls if record.control_of == best.number]


def _better(study: OpenStudy, record: TrialRecord) -> TrialRecord:
    """Return the best of a trial and its controls."""
    return max([record, *_controls(study, record)], key=_val)


def findings_of(study: OpenStudy, export: Export, val_images: int) -> tuple[str, ...]:
    """Return sentences on the controls and refits of the exported student."""
    if study.facts.refit.count:
        return tuple(about_refits(study, export.front.number))
    controls, shipped = _controls(study, export.front), export.weights.number
    return tuple(about_controls(study, export.front, controls, val_images, shipped=shipped))


def _skipped(context: TrialContext) -> Iterator[str]:
    if skipped := context.data.skipped:
        shown = ", ".join(skipped[:3]) + (", …" if skipped[3:] else "")
        yield f"{len(skipped)} unreadable images were left out: {shown}"
