"""Add the front, notes and curves of a study to optuna-dashboard.

They are written to the storage in the format of the dashboard: at the end of a run, and when the
dashboard starts on a study that is not running. A note that a user wrote is kept. No torch.
"""

from __future__ import annotations

import fcntl
import json
from dataclasses import replace
from pathlib import Path
from uuid import NAMESPACE_URL, uuid5

import optuna
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
from kdsearch.study.study import OpenStudy
from kdsearch.study.summary import Summary
from kdsearch.tasks.base import Metric

FRONT = "front"
OURS = "_Written by kdsearch after each run. Delete this line to keep your own text._"
_ARTIFACTS = "artifacts"
_CURVE = "curve.csv"


def artifact_store(path: Path) -> FileSystemArtifactStore:
    """Return the artifact store of the study at `path`."""
    (path / _ARTIFACTS).mkdir(exist_ok=True)
    return FileSystemArtifactStore(path / _ARTIFACTS)


def refresh(path: Path, storage: str | None = None) -> bool:
    """Update the dashboard of a study; return False, and write nothing, while it is running.

    storage: see `open_study`.
    """
    with (path / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        study = load_study(path, storage)
        if study.facts.teacher is not None:
            write_dashboard(study)
        return True


def write_dashboard(study: OpenStudy) -> None:
    """Write the figure, the notes and the artifacts. The caller holds the lock of the study."""
    dashboard = _Dashboard(study)
    summary, records = summarise(study), study.records()
    dashboard.draw(summary, records)
    dashboard.note(None, _about_study(study, summary, records))
    for record in records:
        if record.state != "running":
            dashboard.note(record, _about_trial(record, summary.metric))
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
        name = str(uuid5(NAMESPACE_URL, f"{self._study.name}/{record.number}/{_CURVE}"))
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


def _about_trial(record: TrialRecord, metric: Metric) -> str:
    kind = f", {record.outside()}" if record.kind else ""
    ended = words.STATES.get(record.state, record.state)
    reason = words.reason(record)
    lines = [f"**{ended}**{kind}{f': {_plain(reason)}' if reason else ''}"]
    if record.val is not None:
        lines.append(f"validation {metric.label} {words.score(metric, record.val)}")
    if record.cost is not None:
        known = ((a, v) for a, v in words.costs(record.cost).items() if v is not None)
        lines.append(", ".join(words.amount(axis, value) for axis, value in known))
    took = f"{duration(record.seconds)}, {counted(len(record.curve), 'epoch')}"
    lines.append(f"{took}{f', {_plain(record.mode)}' if record.mode else ''}")
    rows = "\n".join(f"| `{name}` | {_plain(str(v))} |" for name, v in record.params.items())
    return "\n\n".join([*lines, f"| parameter | value |\n|---|---|\n{rows}"])


def _plain(text: str) -> str:
    """Escape the characters that Markdown gives a meaning."""
    return "".join(f"\\{c}" if c in "\\`*_[]<>|#~" else c for c in text)
