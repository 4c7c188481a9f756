"""MLflow: one run a study, and in it one a trial, in `mlflow.db` in the results folder.

Where `mlflow.set_tracking_uri` or MLFLOW_TRACKING_URI names a server, it goes there instead.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # nothing is sent unasked
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else it logs its tables

import mlflow
from mlflow.entities import Metric, Param

from kdsearch.spec import TrialRecord
from kdsearch.study.loggers._numbers import epoch_numbers, final_numbers
from kdsearch.study.loggers.base import Logger
from kdsearch.study.study import OpenStudy
from kdsearch.study.trial_notes import Proposal

if TYPE_CHECKING:
    from kdsearch.training.trainer import Epoch

_STATUS = {"complete": "FINISHED", "pruned": "KILLED", "rejected": "KILLED", "failed": "FAILED"}


class MLflow(Logger):
    """Writes to the experiment `kdsearch`; a resumed study begins a run of its own."""

    def __init__(self, study: OpenStudy) -> None:
        store = f"sqlite:///{study.path.parent.resolve() / 'mlflow.db'}"
        is_named = mlflow.is_tracking_uri_set()
        self._client = mlflow.MlflowClient(None if is_named else store)
        found = self._client.get_experiment_by_name("kdsearch")
        self._experiment = (
            self._client.create_experiment("kdsearch") if found is None else found.experiment_id
        )
        run = self._client.create_run(self._experiment, run_name=study.name)
        self._study = run.info.run_id
        self._metric = study.metric
        self._runs: dict[int, str] = {}

    def on_trial_begin(self, proposal: Proposal) -> None:
        """Begin a trial's run with its knobs."""
        run = self._client.create_run(
            self._experiment,
            run_name=f"trial {proposal.number}",
            tags={"mlflow.parentRunId": self._study},
        )
        self._runs[proposal.number] = run.info.run_id
        params = [Param(name, str(value)) for name, value in proposal.params.items()]
        self._client.log_batch(run.info.run_id, params=params)

    def on_epoch(self, number: int, epoch: Epoch, epochs: int) -> None:
        """Write the metric, losses and learning rate."""
        self._write(self._runs[number], epoch_numbers(epoch, self._metric), epoch.number)

    def on_trial_end(self, record: TrialRecord, best: TrialRecord | None) -> None:
        """Write the outcome and end the run; a reused trial has none."""
        run = self._runs.pop(record.number, None)
        if run is not None:
            self._write(run, final_numbers(record, self._metric), len(record.curve))
            self._client.set_tag(run, "state", record.state)
            self._client.set_tag(run, "reason", record.reason)
            self._client.set_terminated(run, status=_STATUS[record.state])
        if best is not None and best.val is not None:
            self._write(self._study, {f"best {self._metric.key}": best.val}, record.number)

    def close(self) -> None:
        """End the study's run, and those of trials that were interrupted."""
        for run in self._runs.values():
            self._client.set_terminated(run, status="KILLED")
        self._client.set_terminated(self._study)

    def _write(self, run: str, values: dict[str, float], step: int) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(run, [Metric(name, v, now, step) for name, v in values.items()])
