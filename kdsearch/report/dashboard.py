"""Add the front, notes and curves of a study to optuna-dashboard.

They are written to the storage in the format of the dashboard: at the end of a run, and when the
dashboard starts on a study that is not running. A note that a user wrote is kept. No torch.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid5

import optuna
import optuna_dashboard
from optuna.artifacts import FileSystemArtifactStore
from optuna_dashboard import save_plotly_graph_object
from optuna_dashboard._note import (
    get_note_from_system_attrs,
    note_ver_key,
    save_note_with_version,
    split_body,
)
from optuna_dashboard.artifact._backend import DASHBOARD_ARTIFACTS_ATTR_PREFIX

from kdsearch.report import figures, words
from kdsearch.report.artifacts import summarise
from kdsearch.report.marks import escape, sort_out
from kdsearch.report.verdict import verdict
from kdsearch.spec import TrialRecord
from kdsearch.study.config import resume_command
from kdsearch.study.formatting import counted, duration
from kdsearch.study.open import load_study
from kdsearch.study.storage_url import Storage
from kdsearch.study.study import OpenStudy
from kdsearch.study.summary import Summary

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

FRONT = "front"
OURS = "_Written by kdsearch after each run. Delete this line to keep your own text._"
_ARTIFACTS = "artifacts"
_CURVE = "curve.csv"
_HOSTS, _READS = ("127.0.0.1", "localhost"), ("GET", "HEAD")


def artifact_store(path: Path) -> FileSystemArtifactStore:
    """Return the artifact store of the study at `path`."""
    (path / _ARTIFACTS).mkdir(exist_ok=True)
    return FileSystemArtifactStore(path / _ARTIFACTS)


@contextmanager
def web_app(path: Path, storage: Storage) -> Iterator[WSGIApplication]:
    """Yield optuna-dashboard for one study, for pages of this machine; notes are all they change.

    In a folder that is read-only it serves a copy.
    """
    with TemporaryDirectory(prefix="kdsearch-") as folder:
        is_copied = storage.is_inside and not os.access(path, os.W_OK)
        if is_copied:
            storage, path = storage.copied(folder), Path(folder)
        yield _guarded(
            optuna_dashboard.wsgi(storage.full_url(), artifact_store=artifact_store(path))
        )


def _guarded(app: WSGIApplication) -> WSGIApplication:
    """Refuse requests for other hosts (DNS rebinding), and all that would delete or rename."""

    def guarded(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        host = urlsplit(f"//{environ.get('HTTP_HOST', '')}")
        origin = urlsplit(environ.get("HTTP_ORIGIN", "")).netloc or host.netloc
        method, where = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        is_note = method == "PUT" and where.endswith("/note")
        if host.hostname in _HOSTS and origin == host.netloc and (method in _READS or is_note):
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"kdsearch serves the study to this machine to be read; notes can be written"]

    return guarded


def refresh(path: Path, storage: str | None = None) -> str:
    """Update the dashboard of a study. Return '', or why nothing was written.

    storage: see `open_study`.
    """
    if not os.access(path, os.W_OK):
        return "The folder is read-only: this is a copy, and what you write is not kept"
    with (path / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return "The study is running: front, notes and curves appear when it has ended"
        study = load_study(path, storage, access="write")
        if study.facts.teacher is not None:
            write_dashboard(study)
        return ""


def write_dashboard(study: OpenStudy) -> None:
    """Write the figure, the notes and the artifacts. The caller holds the lock of the study."""
    dashboard = _Dashboard(study)
    summary, records = summarise(study), study.records()
    dashboard.draw(summary, records)
    dashboard.note(None, _about_study(study, summary, records))
    study.store.set_facts(_facts(summary))
    for record in records:
        if record.state != "running":
            dashboard.note(record, _about_trial(record, summary, study.facts.test))
            dashboard.keep_curve(record)


class _Dashboard:
    """Writes only missing or changed entries."""

    def __init__(self, study: OpenStudy) -> None:
        self._study = study
        self._storage = storage = study.store.disk
        self._id = study.store.study_id
        self._attrs = storage.get_study_system_attrs(self._id)
        trials = storage.get_all_trials(self._id, deepcopy=False)
        self._trial_ids = {trial.number: trial._trial_id for trial in trials}
        self._files = artifact_store(study.path)

    def draw(self, summary: Summary, records: list[TrialRecord]) -> None:
        """Save the figure of the front on the axis of the budget."""
        marks = sort_out(summary, records)
        axis = summary.budget.axis()
        if axis in figures.known_axes(marks):
            figure = figures.scatter(replace(summary, baselines=()), marks, axis)
            title = f"Front of {escape(study_title(summary))}"
            figure.update_layout(title={"text": title, "y": 0.98}, margin={"t": 120})
            name = self._storage.get_study_name_from_id(self._id)
            handle = optuna.load_study(study_name=name, storage=self._storage)
            save_plotly_graph_object(handle, figure, graph_object_id=FRONT)

    def note(self, record: TrialRecord | None, text: str) -> None:
        """Write a note on a trial, or on the study, unless a user has written one."""
        trial_id = None if record is None else self._trial_ids[record.number]
        before = get_note_from_system_attrs(self._attrs, trial_id)
        body = f"{text}\n\n{OURS}"
        if before["body"] == body or (before["body"] and OURS not in before["body"]):
            return
        if before["version"]:
            version = before["version"] + 1
            save_note_with_version(self._storage, self._id, trial_id, version, body)
            return
        # save_note reads all attributes to clear an older text: 24 ms a note at 200 trials, here 2
        for key, value in (*split_body(body, trial_id).items(), (note_ver_key(trial_id), 1)):
            self._storage.set_study_system_attr(self._id, key, value)

    def keep_curve(self, record: TrialRecord) -> None:
        """Save the curve of a trial as an artifact of the study: an ended trial accepts none."""
        file = self._study.directory(record.number) / _CURVE
        study = self._storage.get_study_name_from_id(self._id)
        name = str(uuid5(NAMESPACE_URL, f"{study}/{record.number}/{_CURVE}"))
        key = f"{DASHBOARD_ARTIFACTS_ATTR_PREFIX}{self._trial_ids[record.number]}:{name}"
        if key in self._attrs or not file.is_file():
            return
        with file.open("rb") as content:
            self._files.write(name, content)
        entry = {"artifact_id": name, "filename": _CURVE, "mimetype": "text/csv", "encoding": None}
        self._storage.set_study_system_attr(self._id, key, json.dumps(entry))


def study_title(summary: Summary) -> str:
    """Return the study's name and its budget."""
    limits = words.limits(summary.budget)
    return f"{summary.study}, within {limits}" if limits else summary.study


def _about_study(study: OpenStudy, summary: Summary, records: list[TrialRecord]) -> str:
    lines = [
        f"# {_plain(study_title(summary))}",
        _plain(verdict(summary, records)),
        _plain(words.tally(summary, records)),
        *(f"- {_plain(note)}" for note in study.facts.notes),
        f"Resume: `{resume_command(study.path)}`",
        _plain(words.conventions(summary)),
    ]
    return "\n\n".join(lines)


def _facts(summary: Summary) -> dict[str, float | str]:
    """Return the user attributes of the study: what ships, by plain values that are known."""
    best, file = summary.shipped, summary.file
    if best is None:
        return {"shipped": "nothing yet"}
    found: dict[str, float | str | None] = {
        "shipped": best.trial,
        f"validation {summary.metric.key}": best.val,
        f"test {summary.metric.key}": best.test,
        "latency_ms": best.latency_ms,
        "latency_low_ms": best.latency_low_ms,
        "latency_high_ms": best.latency_high_ms,
        "mflops": None if best.flops is None else best.flops / 1e6,
        "params": best.params,
        "megabytes": None if file is None else file.bytes / 1e6,
    }
    return {
        name: float(f"{value:.4g}") if isinstance(value, float) else value
        for name, value in found.items()
        if value is not None
    }


def _about_trial(record: TrialRecord, summary: Summary, test: Mapping[int, float]) -> str:
    metric = summary.metric
    kind = f", {record.outside()}" if record.kind else ""
    ended = words.STATES.get(record.state, record.state)
    reason = words.reason(record)
    lines = [f"**{ended}**{kind}{f': {_plain(reason)}' if reason else ''}"]
    if summary.shipped is not None and record.number == summary.shipped.trial:
        lines.insert(0, "**This trial ships: its student is in best/.**")
    if record.val is not None:
        lines.append(f"validation {metric.label} {words.score(metric, record.val)}")
    if record.number in test:
        lines.append(f"test {metric.label} {words.score(metric, test[record.number])}")
    if record.cost is not None:
        known = ((a, v) for a, v in words.costs(record.cost).items() if v is not None)
        lines.append(", ".join(words.amount(axis, value) for axis, value in known))
    took = f"{duration(record.seconds)}, {counted(len(record.curve), 'epoch')}"
    lines.append(f"{took}{f', {_plain(record.mode)}' if record.mode else ''}")
    shown = {
        name: f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in record.params.items()
    }
    rows = "\n".join(f"| `{name}` | {_plain(text)} |" for name, text in shown.items())
    return "\n\n".join([*lines, f"| parameter | value |\n|---|---|\n{rows}"])


def _plain(text: str) -> str:
    """Escape the characters that Markdown gives a meaning."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#~" else c for c in text)
