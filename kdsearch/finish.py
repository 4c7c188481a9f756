"""What follows the search: the test split, the file to ship, its controls, what they tell."""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from kdsearch import card
from kdsearch.bench import CACHE, common_accuracy
from kdsearch.derive import write_derived
from kdsearch.engines.proposals import Engine, Proposals
from kdsearch.errors import BudgetError, TrialsFailedError
from kdsearch.ledger import Ledger
from kdsearch.loggers.base import Watch
from kdsearch.model import Model
from kdsearch.report import words
from kdsearch.request import resume_command
from kdsearch.shelf import off_the_shelf
from kdsearch.ship import Package, pack
from kdsearch.space import Params
from kdsearch.spec import Candidate, TrialRecord
from kdsearch.spend import ENDED, spent
from kdsearch.study import Asked, Study, searched
from kdsearch.summary import Summary, TeacherEntry
from kdsearch.taps import bare
from kdsearch.trainer import accuracy
from kdsearch.trial import WEIGHTS, Bench, build_student
from kdsearch.weights import fit_weights, read_weights

CONTROLS = {
    "none": "without a teacher",
    "label_smoothing": "with label smoothing alone",
    "kd": "with plain KD at its defaults",
}
_KNOWN_BY_HEART = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What a study found, and the folder to ship."""

    path: Path
    summary: Summary
    package: Package
    notes: tuple[str, ...]


def _weights(study: Study, record: TrialRecord) -> Path:
    number = record.number if record.reused_from is None else record.reused_from
    return study.directory(number) / WEIGHTS


def finish(study: Study, bench: Bench, watch: Watch, engine: Engine, *, ledger: Ledger) -> Finished:
    """Read the test split, ship the best, train its controls, write the report.

    ledger: is closed before the report tells what was spent. Raises BudgetError when nothing fits,
    also when the files are measured again, and TrialsFailedError when no trial completed.
    """
    started = time.perf_counter()
    try:
        if not study.front():
            raise _nothing(study)
        _note_surroundings(study, bench, watch)
        _read_test(study, bench, study.front())
        best, package = _ship(study, bench, watch)
        controls = _controls(study, engine, best, watch)
    except (BudgetError, TrialsFailedError):
        ledger.end(ENDED)
        write_derived(study)
        raise
    _read_test(study, bench, controls)
    ledger.end(ENDED)
    judged = tuple(_judgement(study, best, controls, len(bench.data.val)))
    notes = (*_skipped(bench), *judged, str(spent(study)))
    seconds = time.perf_counter() - started - sum(record.seconds for record in controls)
    study.note(best=best.number, notes=notes, finish_seconds=max(0.0, seconds))
    card.tell(package.path, notes=judged)
    return Finished(path=study.path, summary=write_derived(study), package=package, notes=notes)


def _note_surroundings(study: Study, bench: Bench, watch: Watch) -> None:
    """Note what the report shows beside the trials: networks off the shelf, numbers of images."""
    if "shelf" not in study.facts():
        shelf = off_the_shelf(bench, study.path.parent / CACHE, watch.note)
        study.note(shelf=[asdict(entry) for entry in shelf])
    study.note(images={"val": len(bench.data.val), "test": len(bench.data.test)})


def _nothing(study: Study) -> BudgetError | TrialsFailedError:
    """Say why the front is empty: nothing is accurate enough or in the budget, or all failed."""
    if complete := study.complete():
        best = max(complete, key=lambda record: record.val or 0.0)
        return BudgetError(
            f"no student reaches --min-accuracy {study.request.min_accuracy}: the most accurate of "
            f"{len(complete)}, no. {best.number}, has {100 * (best.val or 0.0):.2f} % on "
            "validation. Train longer (--epochs), raise the budget, or ask for less, with another "
            "--name."
        )
    records = searched(study.records())
    tried = [*records, *(r for r in study.records() if r.turned_away)]
    priced = [r for r in tried if r.state == "infeasible" and r.cost is not None]
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
            teacher=_teacher(study),
            latencies=bench.latencies,
        )
        if package.is_within(study.budget):
            return record, package
        watch.note(
            f"Trial {record.number} is not shipped: its file took {package.latency}, "
            f"over the budget of {study.budget.latency_ms} ms"
        )
    shutil.rmtree(study.path / "best")
    raise BudgetError(
        f"none of the {len(study.front())} exported students on the front kept the budget of "
        f"{study.budget.latency_ms} ms when measured again; is the machine busy? "
        f"`{resume_command(study.path)}` measures them again."
    )


def _controls(study: Study, engine: Engine, best: TrialRecord, watch: Watch) -> list[TrialRecord]:
    """Train the best student as each control is taught, with the same recipe and seed."""
    student = {k: v for k, v in best.params.items() if not k.startswith("method.")}

    def is_known(params: Params) -> bool:
        known = (r for r in study.records() if r.control_of == best.number and r.params == params)
        return any(record.state == "complete" for record in known)

    def source() -> Iterator[Asked]:
        for method in CONTROLS:
            params: Params = {**student, "method.name": method}
            if not is_known(params):
                watch.note(f"Control for no. {best.number}: the same student with method {method}")
                yield study.ask_control(params, best.number)

    def earlier(asked: Asked) -> TrialRecord | None:
        found = study.earlier(asked)
        return found if found is not None and _weights(study, found).is_file() else None

    on_trial = partial(watch.trial, best=best)
    engine(Proposals(study, source(), on_begin=watch.begun, on_trial=on_trial, earlier=earlier))
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
                f"{words.gained(best.val - control.val)} of validation accuracy against the "
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


def _teacher(study: Study) -> dict[str, float | None]:
    told = cast("dict[str, float | None]", study.facts()["teacher"])
    return {"validation": told["val"], "test": told["test"]}


def _skipped(bench: Bench) -> Iterator[str]:
    skipped = bench.data.skipped
    if skipped:
        shown = ", ".join(skipped[:3]) + (", …" if skipped[3:] else "")
        yield f"{len(skipped)} unreadable images were left out: {shown}"
