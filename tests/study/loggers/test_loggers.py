"""Every logger writes one study and must hold it afterwards."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from table_study import look_up, opened

from kdsearch.spec import TrialRecord
from kdsearch.study.callbacks import Callbacks
from kdsearch.study.loggers import Loggers
from kdsearch.study.study import OpenStudy
from kdsearch.training.trainer import Epoch


def message(study: OpenStudy, name: str) -> list[TrialRecord]:
    """Log two trials at a time with one logger; one of them is interrupted."""
    callbacks = Callbacks(Loggers([name]).open(study))
    proposal, lost = study.ask(), study.ask()
    for trial in (proposal, lost):
        callbacks.on_trial_begin(trial)
        for number, val in ((1, 0.25), (2, 0.5)):
            epoch = Epoch(number=number, losses={"kd": 2.0 / number}, val=val, lr=0.1, seconds=1.0)
            callbacks.on_epoch(trial.number, epoch, 2)
    record = study.tell(proposal, replace(look_up(proposal), state="complete", val=0.5))
    callbacks.on_trial_end(record, record)
    assert len(callbacks._callbacks) == 1, "the logger failed"
    callbacks.close()
    assert len(callbacks._callbacks) == 1, "the logger failed to close"
    return [record]


def test_tensorboard_has_the_curves_and_the_knobs_of_a_trial(fast_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with opened(fast_path / "tensorboard") as study:
        (record,) = message(study, "tensorboard")
        folder = study.path / "tensorboard"
    assert {run.name for run in folder.iterdir()} == {"000000", "000001"}
    events = EventAccumulator(str(folder / "000000"))
    events.Reload()
    found = {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert found["accuracy/student"] == [0.25, 0.5]
    assert found["loss/kd"] == [2.0, 1.0]
    assert found["lr"] == pytest.approx([0.1, 0.1])
    assert found["final/accuracy"] == pytest.approx([record.val])
    assert record.cost is not None
    assert found["final/flops"] == [record.cost.flops]
    knobs = events.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    assert all(name.encode() in knobs for name in record.params)


# MLflow 3.17 uses a loader strategy that SQLAlchemy 2.1 will drop.
@pytest.mark.filterwarnings("default::sqlalchemy.exc.SADeprecationWarning")
def test_mlflow_has_a_run_a_trial_in_a_store_next_to_the_studies(fast_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")
    with opened(fast_path / "out" / "mlflow") as study:
        (record,) = message(study, "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{fast_path / 'out' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'kdsearch'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {"mlflow", "trial 0", "trial 1"}
    trial = runs["trial 0"]
    assert trial.data.params == {name: str(value) for name, value in record.params.items()}
    history = client.get_metric_history(trial.info.run_id, "accuracy")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.25), (2, 0.5)]
    assert trial.data.metrics["final/accuracy"] == record.val
    assert trial.data.tags["mlflow.parentRunId"] == runs["mlflow"].info.run_id
    ended = {name: run.info.status for name, run in runs.items()}
    assert ended == {"mlflow": "FINISHED", "trial 0": "FINISHED", "trial 1": "KILLED"}


def test_wandb_writes_a_run_a_trial_and_stays_offline(fast_path: Path) -> None:
    pytest.importorskip("wandb", reason="the extra `wandb` is not installed")
    assert "WANDB_MODE" not in os.environ
    with opened(fast_path / "wandb") as study:
        message(study, "wandb")
        runs = sorted((study.path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(runs) == 2
    content = b"".join(run.read_bytes() for run in runs)
    assert b"student.family" in content
    assert b"final/flops" in content
    assert b"loss/kd" in content
