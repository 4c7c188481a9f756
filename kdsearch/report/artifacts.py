"""Write the files derived from the trials of a study: front.json, trials.csv, report.*, figures/.

They may be deleted at any time. No torch: a report needs no GPU and no model.
"""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path

from pydantic import TypeAdapter

from kdsearch import atomic
from kdsearch.deploy.model_card import METRICS, PICTURE, read_metrics
from kdsearch.deploy.targets import target_info
from kdsearch.errors import StudyError, printable
from kdsearch.report.advice import advice, located
from kdsearch.report.answers import answers
from kdsearch.report.drawings import drawings
from kdsearch.report.markdown import markdown
from kdsearch.report.page import render
from kdsearch.spec import Cost, TrialRecord
from kdsearch.study import refit
from kdsearch.study.budget_shares import Share
from kdsearch.study.builtin_spaces import builtin
from kdsearch.study.config import StudyConfig
from kdsearch.study.importances import rankings
from kdsearch.study.options import options_of
from kdsearch.study.plan import spent_epochs
from kdsearch.study.study import OpenStudy, searched
from kdsearch.study.summary import Counts, Entry, Seconds, ShippedFile, Summary
from kdsearch.tasks.base import Details

_READER = TypeAdapter(ShippedFile)
_OTHERWISE = ("space", "flip", "budget_with_nms")  # flags that are written in another form


def summarise(study: OpenStudy) -> Summary:
    """Return the summary of a study as it is now. Raises StudyError before the search."""
    records, facts = study.records(), study.facts
    if facts.teacher is None:
        raise StudyError(f"the study {study.name!r} has nothing to report yet")
    front = study.front()
    best, shipped = facts.best, facts.shipped
    if best not in [record.number for record in front]:
        best, shipped = (front[-1].number if front else None), None
    test = facts.test
    candidates, gains = refit.summarised(study)
    controls = [r for r in records if r.state == "complete" and r.kind == "control"]
    if candidates:
        controls = []
    summary = Summary(
        study=study.name,
        budget=study.budget,
        target=target_info(study.config),
        teacher=facts.teacher,
        counts=count_states(records),
        front=tuple(_entry(record, test) for record in front),
        controls=tuple(_entry(r, test) for r in controls if r.control_of == best),
        best=best,
        shipped=next((_entry(r, test) for r in records if r.number == shipped), None),
        candidates=candidates,
        gains=gains,
        seconds=Seconds(
            teacher=facts.teacher_seconds,
            search=sum(record.seconds for record in searched(records)),
            refit=sum(record.seconds for record in records if record.kind),
            outputs=sum(record.teacher_seconds for record in records),
            wall=sum(run.seconds for run in facts.runs),
            finish=facts.finish_seconds,
        ),
        baselines=facts.baselines or (),
        images=facts.images,
        epochs=spent_epochs(records, study.config.look_epochs, shipped),
        chance=facts.chance,
        details=_details(facts.details, shipped),
        classes=facts.classes,
        stopping=study.config.stopping,
        min_accuracy=study.config.min_accuracy,
        task=facts.task,
        metric=study.metric,
        file=None if shipped is None else _shipped_file(study.path / "best"),
    )
    summary = replace(summary, answers=answers(summary, records))
    return replace(summary, advice=advice(study, summary, _command(study)))


def _shipped_file(folder: Path) -> ShippedFile | None:
    """Return the file of an exported folder; None where the folder is gone."""
    if not (folder / METRICS).is_file():
        return None
    metrics = read_metrics(folder)
    known = {**metrics, **metrics["onnx"]}
    return _READER.validate_python(
        {item.name: known[item.name] for item in fields(ShippedFile) if item.name in known}
    )


def _details(details: Mapping[str, Details], shipped: int | None) -> dict[str, Details]:
    """Return the details of the teacher and of what ships."""
    names = {"teacher": "teacher", str(shipped): "shipped"}
    found = {}
    for key, value in details.items():
        who, split = key.split(" ")
        if who in names:
            found[f"{names[who]} {split}"] = value
    return found


def write_derived(study: OpenStudy) -> Summary:
    """Write all derived files again and return the summary."""
    summary, records = summarise(study), study.records()
    found, command = rankings(study), _command(study)
    notes = study.facts.notes
    figures = drawings(summary, records)
    shown = replace(summary, advice=located(summary.advice, study.path))
    file = study.path / "best" / PICTURE
    picture = file.read_bytes() if summary.shipped is not None and file.is_file() else b""
    html = render(shown, records, rankings=found, notes=notes, command=command, picture=picture)
    text = markdown(
        shown,
        records,
        rankings=found,
        notes=notes,
        command=command,
        figures=figures,
        picture=f"best/{PICTURE}" if picture else "",
    )
    texts = {
        "front.json": json.dumps(summary.to_json(), indent=1) + "\n",
        "trials.csv": _csv(records),
        "report.md": text,
        **{f"figures/{name}": svg for name, svg in figures.items()},
    }
    safe = {name: printable(content, keep="\n\r\t") for name, content in texts.items()}
    for name, content in {**safe, "report.html": html}.items():  # whose scripts have hashes
        file = study.path / name
        file.parent.mkdir(exist_ok=True)
        atomic.write(file, content)
    return summary


def _command(study: OpenStudy) -> str:
    """Return the command line that runs this study again, or resumes it in its folder."""
    changes, known = study.config.changes(StudyConfig()), options_of(StudyConfig)
    flags_of = {name: pair for name, pair in changes.items() if name in known}
    flags_of["out"] = str(study.path.parent), "results"
    shares = {name: Share(share) for name, share in study.config.budget_shares.items()}
    flags = [
        f"--{name.replace('_', '-')} {shlex.quote(str(shares.get(name, value)))}"
        for name, (value, default) in flags_of.items()
        if name not in _OTHERWISE and value != default
    ]
    flags += ["--budget-with-nms"] if study.config.budget_with_nms else []
    if study.config.storage is not None:  # the password is in PGPASSWORD
        flags.append(f"--storage {shlex.quote(study.config.storage.replace(':***@', '@'))}")
    texts = {name: file.read_text(encoding="utf-8") for name, file in builtin().items()}
    space = next((n for n, text in texts.items() if text == study.config.space), str(study.path))
    if space != study.config.data:
        flags.append(f"--space {shlex.quote(space)}")
    if study.config.flip is not None:
        flags.append("--flip" if study.config.flip else "--no-flip")
    facts, again = study.facts, study.facts.refit
    flags += [f"--trials {facts.trials}"] if facts.trials else []
    flags += [f"--flat-after {facts.flat_after}"] if facts.flat_after else []
    flags += [f"--until {facts.until:g}"] if facts.until else []
    flags += [f"--refit {again.count} --seeds {again.seeds}"] if again.count else []
    flags += [f"--refit-epochs {again.epochs}"] if again.count and again.epochs else []
    return " ".join(["kdsearch run", *flags, f"--name {study.name}"])


def count_states(records: Sequence[TrialRecord]) -> Counts:
    """Return the number of trials of the search in each state."""
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


def _entry(record: TrialRecord, test: Mapping[int, float]) -> Entry:
    assert record.cost is not None
    assert record.val is not None
    return Entry(
        trial=record.number,
        val=record.val,
        test=test.get(record.number),
        config=record.params,
        **asdict(record.cost),
    )


_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_CSV = (
    *("seconds", "mode", "control_of", "refit_of", "reused_from", "rejected_early"),
    *("taught_epochs", "reason"),
)


def _csv(records: Sequence[TrialRecord]) -> str:
    params = sorted({name for record in records for name in record.params})
    costs = [item.name for item in fields(Cost)]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["trial", "state", "val", "epochs", *costs, *_CSV, *map(_cell, params)])
    for record in records:
        cost = record.cost or Cost()
        row = replace(record, seconds=round(record.seconds, 3))
        writer.writerow(
            [
                *(row.number, row.state, row.val, len(row.curve)),
                *(getattr(cost, name) for name in costs),
                *(_cell(getattr(row, name)) for name in _CSV),
                *(_cell(row.params.get(name)) for name in params),
            ]
        )
    return text.getvalue()


def _cell(value: object) -> object:
    """Return a cell that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in _FORMULA else value
