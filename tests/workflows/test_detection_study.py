"""A study of boxes from its folder to report, card, picture, files and a resumed teacher."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import detection_data
import numpy as np
import onnx
import pytest
from PIL import Image
from quick import quick

import kdsearch
from kdsearch.deploy.formats.onnx import load_file
from kdsearch.study.open import load_study

SPACE = """
student:
  family: {choice: {resnet: {width: 0.25, depth: 4}}}
  head: {channels: 16, depth: 1}
method: {name: {choice: {det_kd+box_iou: {}}}}
train: {epochs: 4, batch_size: 4, optimizer: adamw, lr: 0.004}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("study")
    (folder / "space.yaml").write_text(SPACE)
    with quick():
        found = kdsearch.run(
            data=detection_data.write(folder / "shapes"),
            space=folder / "space.yaml",
            teacher_epochs=1,
            budget=kdsearch.Budget(flops=60_000_000),
            trials=1,
            out=folder / "results",
            name="boxes",
        )
        kdsearch.export_study(found, ["onnx-int8"], max_drop=1.0)
        yield found.path


def test_the_study_knows_its_metric_with_its_noise(study: Path) -> None:
    facts = load_study(study).facts
    shipped = facts.details[f"{facts.shipped} validation"]
    assert facts.metric.key == "map50"
    assert load_study(study).config.left_out == ("label_smoothing", "kd")  # controls of classes
    assert facts.metric.image_variance == shipped.image_variances["map50"]
    assert set(shipped.metrics) >= {"map50", "map"}
    assert shipped.metrics["map"] <= shipped.metrics["map50"]
    assert any(note.startswith("By class on test: lowest AP50") for note in facts.notes)


def test_report_and_card_show_classes_with_noise_and_the_same_picture(study: Path) -> None:
    page, text = ((study / name).read_text() for name in ("report.html", "report.md"))
    card = (study / "best" / "README.md").read_text()
    with Image.open(study / "best" / "validation.png") as picture:
        assert picture.width > 3 * 200
    assert "best/validation.png" in text
    for shown in (page, text):
        assert "AP50 of each class on test" in shown
        assert "mAP50" in shown
    assert "| class | AP50, % | of labels, % |" in card
    assert "object-detection" in card
    for name in detection_data.CLASSES:
        assert name in page


def test_each_file_is_measured_by_its_own_runtime(study: Path) -> None:
    best = study / "best"
    metrics = json.loads((best / "metrics.json").read_text())
    assert metrics["onnx"]["same_predictions"] > 0.999
    assert metrics["onnx"]["predict_py"]["same"] > 0.999
    rounded = metrics["files"]["student-int8.onnx"]
    assert abs(rounded["val"] + rounded["drop"] - metrics["onnx"]["val"]) < 1e-6
    assert rounded["bytes"] < metrics["onnx"]["bytes"]
    (output,) = onnx.load(best / "student.onnx").graph.output
    assert output.name == "detections"
    points = sum(h * w for h, w in ((12, 16), (6, 8), (3, 4)))
    answer = load_file(best / "student.onnx")(np.zeros((2, 3, 96, 128), np.float32))
    assert answer.shape == (2, points, 7)


def test_the_boxes_stay_float_in_8_bits(study: Path) -> None:
    """Softmax, products and sums of the decoding are no quantised operators."""
    nodes = onnx.load(study / "best" / "student-int8.onnx").graph.node
    rounded = {node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    of_decoding = {
        output
        for node in nodes
        if node.op_type in ("Softmax", "ReduceSum", "Sigmoid", "Mul", "Sub")
        for output in node.output
    }
    assert of_decoding
    assert not rounded & of_decoding


def test_a_finished_detector_is_a_teacher(study: Path, tmp_path: Path) -> None:
    with quick():
        found = kdsearch.distill(
            {
                "student.family": "mobilenet",
                "student.mobilenet.width": 0.25,
                "student.head.channels": 16,
                "method.name": "pkd",
                "method.pkd.mapping": "even",
                "train.epochs": 1,
                "train.batch_size": 4,
            },
            data=study.parents[1] / "shapes",
            teacher=f"study:{study}",
            out=tmp_path,
        )
    assert (found.package.path / "student.onnx").is_file()
    assert found.metric.key == "map50"


TAUGHT_BY = ("pseudo_boxes", "soft_boxes")
TAUGHT = SPACE.replace(
    "det_kd+box_iou: {}", "pseudo_boxes: {}, soft_boxes: {}, pkd: {mapping: even}"
)


def test_its_file_is_a_teacher_of_boxes(study: Path, tmp_path: Path) -> None:
    """The teacher's metric is that of the file, and what it cannot teach is left out."""
    (tmp_path / "space.yaml").write_text(TAUGHT)
    with quick():
        found = kdsearch.run(
            data=study.parents[1] / "shapes",
            space=tmp_path / "space.yaml",
            teacher=f"onnx:{study / 'best' / 'student.onnx'}",
            budget=kdsearch.Budget(flops=60_000_000),
            trials=2,
            out=tmp_path / "results",
            name="taught",
        )
    opened = load_study(found.path)
    teacher = opened.facts.teacher_entry()
    metrics = json.loads((study / "best" / "metrics.json").read_text())
    assert teacher.val == pytest.approx(metrics["onnx"]["val"])
    assert teacher.flops is None
    assert teacher.params > 0
    records = opened.records()
    assert {record.params["method.name"] for record in records} <= {*TAUGHT_BY, "none"}
    assert {record.state for record in records} == {"complete"}
    (boxes,) = (tmp_path / "results" / ".cache" / "teacher").rglob("*-boxes.safetensors")
    assert boxes.parent.name.startswith("plain-none")
