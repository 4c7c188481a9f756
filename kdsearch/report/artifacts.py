"""What is derived from a study's store and may be deleted: front.json, trials.csv, report.*.

No torch here: a report needs no GPU and no model.
"""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, cast

from kdsearch import atomic, report
from kdsearch.deploy.targets import described
from kdsearch.errors import StudyError
from kdsearch.spec import Cost, TrialRecord
from kdsearch.study import refit
from kdsearch.study.builtin_spaces import builtin
from kdsearch.study.config import StudyConfig
from kdsearch.study.spend import runs_of
from kdsearch.study.study import OpenStudy, searched
from kdsearch.study.summary import (
    Counts,
    Entry,
    Images,
    Seconds,
    ShelfEntry,
    Summary,
    TeacherEntry,
)

Test = dict[str, float]
_NO_FLAGS = ("data_key", "weights_key", "space", "flip", "storage", "storage_study")
_Entries = Sequence[dict[str, Any]]


def summarise(study: OpenStudy) -> Summary:
    """Return the study's summary as its store has it now."""
    records, facts = study.records(), study.facts()
    if "teacher" not in facts:
        raise StudyError(f"the study {study.name!r} has nothing to report yet")
    front = study.front()
    best, shipped = facts.get("best"), facts.get("shipped")
    if best not in [record.number for record in front]:
        best, shipped = (front[-1].number if front else None), None
    test = cast("Test", facts.get("test", {}))
    candidates, gains = refit.summarised(study)
    controls = [r for r in records if r.state == "complete" and r.kind == "control"]
    if candidates:
        controls = []
    return Summary(
        study=study.name,
        budget=study.budget,
        target=described(study.config),
        teacher=TeacherEntry(**cast("dict[str, object]", facts["teacher"])),  # type: ignore[arg-type]
        counts=count_states(records),
        front=tuple(_entry(record, test) for record in front),
        controls=tuple(_entry(r, test) for r in controls if r.control_of == best),
        best=best,
        shipped=next((_entry(r, test) for r in records if r.number == shipped), None),
        candidates=candidates,
        gains=gains,
        seconds=Seconds(
            teacher=cast("float", facts.get("teacher_seconds", 0.0)),
            search=sum(record.seconds for record in searched(records)),
            refit=sum(record.seconds for record in records if record.kind),
            outputs=sum(record.teacher_seconds for record in records),
            wall=sum(run.seconds for run in runs_of(study)),
            finish=cast("float", facts.get("finish_seconds", 0.0)),
        ),
        shelf=tuple(ShelfEntry(**entry) for entry in cast("_Entries", facts.get("shelf", ()))),
        images=Images(**cast("dict[str, int]", facts.get("images", {}))),
        stopping=study.config.stopping,
        min_accuracy=study.config.min_accuracy,
    )


def write_derived(study: OpenStudy) -> Summary:
    """Write all that is derived anew (`report.*`, `figures/` too) and return the summary."""
    summary, records = summarise(study), study.records()
    facts = study.facts()
    atomic.write(study.path / "front.json", json.dumps(summary.to_json(), indent=1) + "\n")
    atomic.write(study.path / "trials.csv", _csv(records))
    importances, command = study.importances(), _command(study)
    notes = cast("Sequence[str]", facts.get("notes", ()))
    html = report.render(summary, records, importances=importances, notes=notes, command=command)
    report.write(study.path / "report.html", html)
    figures = report.drawings(summary, records)
    text = report.markdown(
        summary,
        records,
        importances=importances,
        notes=notes,
        command=command,
        figures=figures,
    )
    report.write(study.path / "report.md", text)
    for name, svg in figures.items():
        report.write(study.path / "figures" / name, svg)
    return summary


def _command(study: OpenStudy) -> str:
    """Return a command line that makes this study again, or goes on with it where it lies."""
    asked = {**study.config.changes(StudyConfig()), "out": (str(study.path.parent), "results")}
    flags = [
        f"--{name.replace('_', '-')} {shlex.quote(str(value))}"
        for name, (value, default) in asked.items()
        if name not in _NO_FLAGS and value != default
    ]
    if study.config.storage is not None:  # the password is in PGPASSWORD
        flags.append(f"--storage {shlex.quote(study.config.storage.replace(':***@', '@'))}")
    texts = {name: file.read_text(encoding="utf-8") for name, file in builtin().items()}
    space = next((n for n, text in texts.items() if text == study.config.space), str(study.path))
    if space != study.config.data:
        flags.append(f"--space {shlex.quote(space)}")
    if study.config.flip is not None:
        flags.append("--flip" if study.config.flip else "--no-flip")
    trials = study.facts().get("trials")
    flags += [f"--trials {trials}"] if trials else []
    flat_after = study.facts().get("flat_after")
    flags += [f"--flat-after {flat_after}"] if flat_after else []
    again = refit.refit_of(study)
    flags += [f"--refit {again.count} --seeds {again.seeds}"] if again.count else []
    flags += [f"--refit-epochs {again.epochs}"] if again.count and again.epochs else []
    return " ".join(["kdsearch run", *flags, f"--name {study.name}"])


def count_states(records: Sequence[TrialRecord]) -> Counts:
    """Return how many trials of the search ended in which state."""
    ran = searched(records)
    states = [record.state for record in ran]
    return Counts(
        complete=states.count("complete"),
        pruned=states.count("pruned"),
        rejected=states.count("rejected"),
        failed=states.count("failed"),
        reused=sum(record.reused_from is not None for record in ran),
        rejected_early=sum(record.rejected_early for record in records),
    )


def _entry(record: TrialRecord, test: Test) -> Entry:
    assert record.cost is not None
    assert record.val is not None
    return Entry(
        trial=record.number,
        val=record.val,
        test=test.get(str(record.number)),
        flops=record.cost.flops,
        params=record.cost.params,
        latency_ms=record.cost.latency_ms,
        latency_spread_ms=record.cost.latency_spread_ms,
        latency_low_ms=record.cost.latency_low_ms,
        latency_high_ms=record.cost.latency_high_ms,
        config=record.params,
    )


def _csv(records: Sequence[TrialRecord]) -> str:
    names = sorted({name for record in records for name in record.params})
    text = io.StringIO()
    writer = csv.writer(text)
    costs = tuple(item.name for item in fields(Cost))
    writer.writerow(
        [
            "trial",
            "state",
            "val",
            *costs,
            "seconds",
            "mode",
            "control_of",
            "refit_of",
            "reused_from",
            "rejected_early",
            "reason",
            *names,
        ]
    )
    for record in records:
        cost = record.cost or Cost()
        writer.writerow(
            [
                record.number,
                record.state,
                record.val,
                *(getattr(cost, name) for name in costs),
                round(record.seconds, 3),
                record.mode,
                record.control_of,
                record.refit_of,
                record.reused_from,
                record.rejected_early,
                record.reason,
                *(record.params.get(name) for name in names),
            ]
        )
    return text.getvalue()
