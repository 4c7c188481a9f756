"""A study of a user's own task, from data to the exported file: nothing knows its name."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import toy_task

from kdsearch.study.callbacks import Callback
from kdsearch.study.open import load_study
from kdsearch.study.options import RunOptions
from kdsearch.workflows.run import run_study

SPACE = """
student.family:
  choice:
    resnet: {width: 0.25, depth: {int: [3, 4]}}
method.name: {choice: {none: {}, at: {}}}
train: {epochs: 3, batch_size: 16, lr: 0.01}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy")
    (out / "space.yaml").write_text(SPACE)
    given = {
        "data": f"{toy_task.__file__}:read",
        "space": str(out / "space.yaml"),
        "teacher_epochs": 2,
        "epochs": 2,
    }
    options = RunOptions(trials=3)
    return run_study(given, Callback(), out=out, name="toy", options=options).path


def test_the_front_names_the_task_and_its_metric(study: Path) -> None:
    front = json.loads((study / "front.json").read_text())
    assert (front["task"], front["metric"]) == ("brightness", "closeness")
    assert 0.5 < front["front"][-1]["val"] <= 1


def test_the_report_and_the_curves_name_the_metric(study: Path) -> None:
    assert "closeness of brightness" in (study / "report.html").read_text()
    text = (study / "report.md").read_text()
    assert "closeness of brightness" in text
    assert "accura" not in text
    with (study / "trials" / "000000" / "curve.csv").open() as file:
        assert "val_closeness" in next(csv.reader(file))
    assert load_study(study).metric == toy_task.Brightness.metric


def test_the_file_alone_reaches_the_metric_of_its_card(study: Path) -> None:
    metrics = json.loads((study / "best" / "metrics.json").read_text())
    assert metrics["onnx"]["same_predictions"] == 1
    assert metrics["onnx"]["val"] == pytest.approx(metrics["closeness"]["validation"], abs=1e-5)
    card = (study / "best" / "README.md").read_text()
    for expected in (
        "| closeness of brightness |",
        "the mean of the pixels",
        "image-feature-extraction",
    ):
        assert expected in card
    assert "accuracy" not in card
    session = onnxruntime.InferenceSession(study / "best" / "student.onnx")
    (output,) = session.get_outputs()
    assert output.name == "brightness"
    (found,) = session.run(None, {"input": np.zeros((2, 1, 12, 18), np.float32)})
    assert found.shape == (2, 1)
    assert metrics["metadata"]["resolution"] == "[12, 18]"
