"""What follows the search: the test split, the file to ship, its controls, what they tell."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias, cast

from kdsearch import card
from kdsearch.bench import CACHE, common_accuracy
from kdsearch.derive import write_derived
from kdsearch.engines.proposals import Engine, Proposals
from kdsearch.errors import BudgetError, TrialsFailedError
from kdsearch.findings import CONTROLS, of_controls, of_refits, of_teacher, of_test
from kdsearch.ledger import Ledger
from kdsearch.loggers.base import Watch
from kdsearch.model import Model
from kdsearch.refit import (
    candidates,
    middle,
    missing,
    refit_of,
    summarised,
    trained,
)
from kdsearch.request import resume_command
from kdsearch.shelf import off_the_shelf
from kdsearch.ship import Package, pack
from kdsearch.space import Params
from kdsearch.spec import Candidate, TrialRecord
from kdsearch.spend import ENDED, spent
from kdsearch.study import Asked, Study, searched
from kdsearch.summary import Summary
from kdsearch.taps import bare
from kdsearch.trainer import accuracy
from kdsearch.trial import WEIGHTS, Bench, build_student
from kdsearch.weights import fit_weights, read_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What a study found, and the folder to ship."""

    path: Path
    summary: Summary
    package: Package
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """A trial that may be shipped, and the training whose weights would be."""

    record: TrialRecord
    weights: TrialRecord


_Followed: TypeAlias = tuple[TrialRecord, Package, tuple[str, ...]]


def _weights(study: Study, record: TrialRecord) -> Path:
    number = record.number if record.reused_from is None else record.reused_from
    return study.directory(number) / WEIGHTS


def finish(study: Study, bench: Bench, watch: Watch, engine: Engine, *, ledger: Ledger) -> Finished:
    """Ship the best, after refits where those are asked for, and its controls; write the report.

    The test split is read when the last choice has been made, but for which files keep the budget.
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
        _note_surroundings(study, bench, watch)
        follow = _with_refits if refit_of(study).count else _with_controls
        best, package, judged = follow(study, bench, watch, timed)
    except (BudgetError, TrialsFailedError):
        ledger.end(ENDED)
        write_derived(study)
        raise
    ledger.end(ENDED)
    notes = (*_skipped(bench), *judged, of_test(study), str(spent(study)))
    seconds = time.perf_counter() - started - training
    study.note(best=best.number, notes=notes, finish_seconds=seconds)
    card.tell(package.path, notes=judged, seeds=_seeds(study, best))
    return Finished(path=study.path, summary=write_derived(study), package=package, notes=notes)


def _with_controls(study: Study, bench: Bench, watch: Watch, engine: Engine) -> _Followed:
    """Ship the most accurate of the front and train its controls, all of them once."""
    _read_test(study, bench, study.front())
    ways = [_Way(record=r, weights=r) for r in reversed(study.front())]
    best, package = _ship(study, bench, watch, ways)
    controls = _controls(study, engine, best, watch)
    _read_test(study, bench, controls)
    return best, package, tuple(of_controls(study, best, controls, len(bench.data.val)))


def _with_refits(study: Study, bench: Bench, watch: Watch, engine: Engine) -> _Followed:
    """Train the best candidates and their controls again, and ship the best by its mean.

    Where the files of none of them keep the budget, the rest of the front follows.
    """
    refit, front = refit_of(study), study.front()
    chosen = ", ".join(str(record.number) for record in candidates(study, refit))
    watch.note(f"Refits: no. {chosen}, under {refit.seeds} seeds each, and their controls")
    _train(study, engine, missing(study, refit), watch, best=front[-1])
    _read_test(study, bench, [*front, *trained(study)])
    records = {record.number: record for record in study.records()}
    ways = []
    for candidate in summarised(study)[0]:
        weights = records[middle(candidate.trained)]
        ways.append(_Way(record=records.pop(candidate.trial), weights=weights))
    ways += [_Way(record=r, weights=r) for r in reversed(front) if r.number in records]
    best, package = _ship(study, bench, watch, ways)
    found, _ = summarised(study)
    plain = [
        control.trained.val.mean
        for candidate in found
        for control in candidate.controls
        if candidate.trial == best.number and control.trained.method == "none"
    ]
    judged = (*of_refits(study, best.number), *of_teacher(study, plain[0] if plain else None))
    return best, package, judged


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
    if teacher["test"] is None:
        teacher["test"] = common_accuracy(bench.teachers, bench.data.test, bench.device)
    test = dict(cast("dict[str, float]", facts.get("test", {})))
    for record in records:
        if str(record.number) not in test:
            student = _load_student(study, record, bench).to(bench.device)
            test[str(record.number)] = accuracy(student, bench.data.test, bench.device)
    study.note(test=test, teacher=teacher)


def _results(study: Study, record: TrialRecord) -> dict[str, float]:
    assert record.val is not None
    test = cast("dict[str, float]", study.facts()["test"])
    return {"validation": record.val, "test": test[str(record.number)]}


def _ship(
    study: Study, bench: Bench, watch: Watch, ways: Sequence[_Way]
) -> tuple[TrialRecord, Package]:
    """Export the first whose file, measured again, keeps the budget."""
    for way in ways:
        assert way.record.cost is not None
        package = pack(
            study.path / "best",
            _load_student(study, way.weights, bench),
            Candidate.from_params(way.weights.params),
            study.request,
            bench.data,
            cost=way.record.cost,
            results=_results(study, way.weights),
            teacher=_teacher(study),
            latencies=bench.latencies,
        )
        if package.is_within(study.budget):
            study.note(best=way.record.number, shipped=way.weights.number)
            return way.record, package
        watch.note(
            f"Trial {way.record.number} is not shipped: its file took {package.latency}, "
            f"over the budget of {study.budget.latency_ms} ms"
        )
    shutil.rmtree(study.path / "best")
    raise BudgetError(
        f"none of the {len(ways)} exported students on the front kept the budget of "
        f"{study.budget.latency_ms} ms when measured again; is the machine busy? "
        f"`{resume_command(study.path)}` measures them again."
    )


def _controls(study: Study, engine: Engine, best: TrialRecord, watch: Watch) -> list[TrialRecord]:
    """Train the best student as each control is taught, with the same recipe."""
    student = {k: v for k, v in best.params.items() if not k.startswith("method.")}

    def done() -> list[TrialRecord]:
        records = study.records()
        mine = [r for r in records if r.kind == "control" and r.control_of == best.number]
        return [record for record in mine if record.state == "complete"]

    def source() -> Iterator[Asked]:
        for method in CONTROLS:
            params: Params = {**student, "method.name": method}
            if all(record.params != params for record in done()):
                watch.note(f"Control for no. {best.number}: the same student with method {method}")
                yield study.ask_control(params, best.number)

    _train(study, engine, source(), watch, best=best)
    return done()


def _train(
    study: Study, engine: Engine, source: Iterator[Asked], watch: Watch, *, best: TrialRecord
) -> None:
    """Run trials outside the search; an equal one stands for another while its weights are kept."""

    def earlier(asked: Asked) -> TrialRecord | None:
        found = study.earlier(asked)
        return found if found is not None and _weights(study, found).is_file() else None

    on_trial = partial(watch.trial, best=best)
    engine(Proposals(study, source, on_begin=watch.begun, on_trial=on_trial, earlier=earlier))


def _seeds(study: Study, best: TrialRecord) -> dict[str, object]:
    """Return what the trainings of the best under several seeds came to, nothing without them."""
    found = [each.trained for each in summarised(study)[0] if each.trial == best.number]
    spreads = {"validation": found[0].val, "test": found[0].test} if found else {}
    return {split: asdict(spread) for split, spread in spreads.items() if spread is not None}


def _teacher(study: Study) -> dict[str, float | None]:
    told = cast("dict[str, float | None]", study.facts()["teacher"])
    return {"validation": told["val"], "test": told["test"]}


def _skipped(bench: Bench) -> Iterator[str]:
    skipped = bench.data.skipped
    if skipped:
        shown = ", ".join(skipped[:3]) + (", …" if skipped[3:] else "")
        yield f"{len(skipped)} unreadable images were left out: {shown}"
