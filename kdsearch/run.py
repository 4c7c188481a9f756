"""A whole study: data, teacher, search, controls, the file to ship, the report.

This room orders the parts and stores what they found; it decides nothing about a trial.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, cast

from kdsearch.bench import (
    Prepared,
    Watch,
    common_accuracy,
    load_data,
    pick_device,
    prepare,
    teacher_specs,
)
from kdsearch.derive import write_derived
from kdsearch.engines import local
from kdsearch.errors import BudgetError, StudyInterruptedError, TrialsFailedError
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
from kdsearch.ship import Package, pack
from kdsearch.space import Params
from kdsearch.spaces import default_space, find_space
from kdsearch.spec import Candidate, TrialRecord
from kdsearch.study import Asked, Outcome, Study, open_study, searched
from kdsearch.summary import Summary, TeacherEntry
from kdsearch.taps import bare
from kdsearch.trainer import OnEpoch, accuracy
from kdsearch.trial import UNFINISHED, WEIGHTS, Bench, build_student, run_trial
from kdsearch.weights import fit_weights, read_weights, save_weights
from kdsearch.workers import open_workers

DEFAULT_TRIALS = 20
CONTROLS = {
    "none": "without a teacher",
    "label_smoothing": "with label smoothing alone",
    "kd": "with plain KD at its defaults",
}
_KNOWN_BY_HEART = 0.05
_VERSIONED = ("kdsearch", "torch", "optuna", "timm", "onnxruntime")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What a study found, and the folder to ship."""

    path: Path
    summary: Summary
    package: Package
    notes: tuple[str, ...]


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
) -> Finished:
    """Run a study, or go on with the one of that name, and return what it found.

    given: fields of Request that the user set; `space` is a name or a file. What is not given is
    taken from the study when there is one, else from Request's defaults. workers: how many trials
    run at a time; one runs in this process, several in processes, on a GPU in threads; None: as
    many as fit the device. Raises BudgetError when nothing fits the budget, and another
    KDSearchError for a request that cannot be met.
    """
    request, old = _resolve(given, None if name is None else study_path(out, name))
    torch_device = pick_device(device)
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
            with _evaluators(study, prepared.bench, watch, workers) as evaluators:
                _search(study, evaluators, watch, total, time_limit)
                finished = _finish(study, prepared, watch, evaluators[0])
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
    evaluators: Sequence[local.Evaluate],
    watch: Watch,
    total: int,
    time_limit: float | None,
) -> None:
    def on_trial(record: TrialRecord) -> None:
        front = study.front()
        _keep_weights(study, front)
        watch.trial(record, front[-1] if front else None)

    watch.search(len(searched(study.records())), total, axis=study.budget.axis())
    local.run(study, evaluators, n_trials=total, time_limit=time_limit, on_trial=on_trial)


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
def _evaluators(
    study: Study, bench: Bench, watch: Watch, workers: int | None
) -> Iterator[list[local.Evaluate]]:
    """Give an evaluator for each trial that may run at a time.

    On a GPU they are threads of this process, which share the images there, each with a stream of
    its own: processes would take turns. On a CPU several are processes of one thread each.
    """
    unfinished = study.path / UNFINISHED
    bench = replace(bench, unfinished=unfinished)
    count = fitting(bench) if workers is None else workers
    judged = Judge(study, images=len(bench.data.val))
    if count == 1 or bench.device.type == "cuda":
        yield [partial(_evaluate, study, watch, judged, partial(run_trial, bench=bench))] * count
        return
    out, device = study.path.parent, bench.device
    with open_workers(count, study.request, out=out, device=device, unfinished=unfinished) as pool:
        yield [partial(_evaluate, study, watch, judged, worker.run_trial) for worker in pool]


def _evaluate(study: Study, watch: Watch, on_rung: OnRung, run: _RunTrial, asked: Asked) -> Outcome:
    return run(
        Candidate.from_params(asked.params),
        directory=study.directory(asked.number),
        on_epoch=partial(watch.trial_epoch, asked.number),
        on_rung=on_rung if asked.control_of is None else None,
    )


def _weights(study: Study, record: TrialRecord) -> Path:
    number = record.number if record.reused_from is None else record.reused_from
    return study.directory(number) / WEIGHTS


def _keep_weights(study: Study, front: list[TrialRecord]) -> None:
    """Delete the weights of dominated trials: a dominated trial never comes back to the front."""
    kept = {record.number for record in front}
    for record in searched(study.records()):
        if record.number not in kept:
            (study.directory(record.number) / WEIGHTS).unlink(missing_ok=True)


def _finish(study: Study, prepared: Prepared, watch: Watch, evaluate: local.Evaluate) -> Finished:
    """Read the test split, ship the best, train its controls, write the report."""
    bench = prepared.bench
    if not study.front():
        write_derived(study)
        raise _nothing(study)
    _read_test(study, bench, study.front())
    best, package = _ship(study, bench, watch)
    controls = _controls(study, evaluate, best, watch)
    _read_test(study, bench, controls)
    notes = (*_skipped(bench), *_judgement(study, best, controls, len(bench.data.val)))
    study.note(best=best.number, notes=notes)
    return Finished(path=study.path, summary=write_derived(study), package=package, notes=notes)


def _nothing(study: Study) -> BudgetError | TrialsFailedError:
    """Say why the front is empty: nothing fits the budget, or everything failed."""
    records = searched(study.records())
    priced = [r for r in records if r.state == "infeasible" and r.cost is not None]
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


def _load_student(study: Study, record: TrialRecord, bench: Bench) -> Model:
    student = build_student(Candidate.from_params(record.params).student, bench.data)
    file = _weights(study, record)
    fit_weights(bare(student.network), read_weights(file), where=f"trial {record.number}")
    return student.freeze()


def _read_test(study: Study, bench: Bench, records: Sequence[TrialRecord]) -> None:
    """Measure on the test split whatever has not been yet, the teacher included."""
    facts = study.facts()
    teacher = cast("dict[str, object]", facts["teacher"])
    teacher["test"] = common_accuracy(bench.teachers, bench.data.test, bench.device)
    test = dict(cast("dict[str, float]", facts.get("test", {})))
    for record in records:
        if str(record.number) not in test:
            student = _load_student(study, record, bench).to(bench.device)
            test[str(record.number)] = accuracy(student, bench.data.test, bench.device)
    study.note(test=test, teacher=teacher)


def _ship(study: Study, bench: Bench, watch: Watch) -> tuple[TrialRecord, Package]:
    """Export the most accurate of the front whose file, measured again, keeps the budget."""
    test = cast("dict[str, float]", study.facts()["test"])
    for record in reversed(study.front()):
        assert record.cost is not None
        assert record.val is not None
        package = pack(
            study.path / "best",
            _load_student(study, record, bench),
            Candidate.from_params(record.params),
            study.request,
            bench.data,
            cost=record.cost,
            results={"validation": record.val, "test": test[str(record.number)]},
            latencies=bench.latencies,
        )
        if package.is_within(study.budget):
            return record, package
        watch.note(
            f"Trial {record.number} is not shipped: its file took {package.latency.ms:.3f} ms, "
            f"over the budget of {study.budget.latency_ms} ms"
        )
    shutil.rmtree(study.path / "best")
    write_derived(study)
    raise BudgetError(
        f"none of the {len(study.front())} exported students on the front kept the budget of "
        f"{study.budget.latency_ms} ms when measured again; is the machine busy? "
        f"`{resume_command(study.path)}` measures them again."
    )


def _controls(
    study: Study, evaluate: local.Evaluate, best: TrialRecord, watch: Watch
) -> list[TrialRecord]:
    """Train the best student as each control is taught, with the same recipe and seed."""
    student = {k: v for k, v in best.params.items() if not k.startswith("method.")}
    for method in CONTROLS:
        params: Params = {**student, "method.name": method}
        known = [r for r in study.records() if r.control_of == best.number and r.params == params]
        if not any(record.state == "complete" for record in known):
            watch.note(f"Control for no. {best.number}: the same student with method {method}")
            asked = study.ask_control(params, best.number)
            earlier = study.earlier(asked)
            if earlier is None or _weights(study, earlier).is_file():
                record = local.run_one(study, asked, evaluate)
            else:
                record = study.tell(asked, evaluate(asked))
            watch.trial(record, best)
    controls = [r for r in study.records() if r.control_of == best.number]
    return [record for record in controls if record.state == "complete"]


def _judgement(
    study: Study, best: TrialRecord, controls: Sequence[TrialRecord], n_val: int
) -> Iterator[str]:
    """Yield what distillation gained, what may be noise, and whether the teacher is any good."""
    assert best.val is not None
    teacher = TeacherEntry(**cast("dict[str, Any]", study.facts()["teacher"]))
    by_method = {str(record.params["method.name"]): record for record in controls}
    noise = math.sqrt(2 * best.val * (1 - best.val) / n_val)
    for method, what in CONTROLS.items():
        control = by_method.get(method)
        if control is not None and control.val is not None:
            yield (
                f"Gain: {_signed(best.val - control.val)} points of validation accuracy over the "
                f"same student {what} ({100 * best.val:.2f} % against {100 * control.val:.2f} %)"
            )
    yield (
        f"One training each, judged on {n_val} validation images: the standard error of such a "
        f"difference is about {100 * noise:.2f} points"
    )
    if teacher.test is not None and teacher.val - teacher.test > _KNOWN_BY_HEART:
        yield (
            f"The teacher scores {100 * teacher.val:.2f} % on validation and "
            f"{100 * teacher.test:.2f} % on test: it has probably been trained on these validation "
            "images, so trust the students' test accuracy more than their validation accuracy"
        )
    plain = by_method.get("none")
    if plain is not None and plain.val is not None and teacher.val <= plain.val:
        yield (
            f"The teacher ({100 * teacher.val:.2f} %) is no better than this student without one "
            f"({100 * plain.val:.2f} %): a better teacher is the first thing to look for"
        )


def _signed(difference: float) -> str:
    return f"{100 * difference:+.2f}"


def _skipped(bench: Bench) -> Iterator[str]:
    skipped = bench.data.skipped
    if skipped:
        shown = ", ".join(skipped[:3]) + (", …" if skipped[3:] else "")
        yield f"{len(skipped)} unreadable images were left out: {shown}"


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
