"""A study of boxes from its folder to report, card, picture, files and a resumed teacher."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import detection_data
import numpy as np
import onnx
import pytest
import torch
import typer
from PIL import Image
from quick import quick

import kdsearch
from kdsearch import data as datasets
from kdsearch.cli import app
from kdsearch.deploy.formats.base import Agreement
from kdsearch.deploy.formats.onnx import load_file
from kdsearch.deploy.package import Package
from kdsearch.deploy.suppression import Suppression
from kdsearch.deploy.timing import Latency
from kdsearch.errors import SpecError
from kdsearch.models import boxes as box_rules
from kdsearch.study.config import StudyConfig
from kdsearch.study.open import load_study
from kdsearch.teachers.load import load_teacher
from kdsearch.teachers.spec import TeacherSpec

SPACE = """
student:
  family: {choice: {resnet: {width: 0.25, depth: 4}}}
  head: {channels: 16, depth: 1}
method: {name: {choice: {det_kd+box_iou: {}}}}
train: {epochs: 2, batch_size: 8, optimizer: adamw, lr: 0.004}
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
            budget=kdsearch.Budget(latency_ms=1000, flops=60_000_000),
            budget_with_nms=True,
            trials=1,
            out=folder / "results",
            name="boxes",
        )
        kdsearch.export_study(found, ["onnx-int8"], max_drop=1.0)
        kdsearch.export_study(found, ["onnx", "onnx-int8"], nms=True, max_drop=1.0)
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
    (command,) = re.findall(r"^kdsearch run .*$", text, re.M)
    typed = typer.main.get_command(app).commands["run"].make_context("run", command.split()[2:])
    assert typed.params["budget_with_nms"] is True
    assert "--left-out" not in command
    for name in ("precision_recall.svg", "object_sizes.svg"):
        drawn = (study / "best" / name).read_text()
        assert drawn == (study / "figures" / name).read_text()
        assert "on test" in drawn
        assert f"]({name})" in card
        assert f"](figures/{name})" in text
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


def test_files_that_keep_the_best_boxes_have_the_same_metric(study: Path) -> None:
    best = study / "best"
    metrics = json.loads((best / "metrics.json").read_text())
    for stem in ("", "-int8"):
        file = metrics["files"][f"student-nms{stem}.onnx"]
        if not stem:  # in 8 bits many scores are equal, and the order of equal ones is free
            assert file["val"] == pytest.approx(metrics["onnx"]["val"], abs=1e-3)
        assert file["agreement"]["are_classes"]
        assert file["predicted"]["same"] > 0.999
        assert file["output"].startswith("`objects`: float32 [batch, 100, 6], best first")
    assert metrics["files"]["student-nms.onnx"]["agreement"]["same"] > 0.999
    assert not metrics["files"]["student-nms.onnx"]["misses"]
    card = (best / "README.md").read_text()
    assert "`student-nms-int8.onnx` answers with `objects`: float32 [batch, 100, 6]" in card


def test_suppression_is_timed_apart_and_counted_in_the_budget(study: Path) -> None:
    opened, best = load_study(study), study / "best"
    onnx_metrics = json.loads((best / "metrics.json").read_text())["onnx"]
    nms, config = onnx_metrics["nms"], opened.config
    assert 0 < nms["ms"] <= nms["p95_ms"]
    assert nms["images"] == detection_data.SPLITS["val"]
    assert nms["counted_ms"] == config.nms_ms > 0
    assert opened.budget.latency_ms == config.budget_ms - config.nms_ms
    assert onnx_metrics["latency_high_ms"] + nms["p95_ms"] <= config.budget_ms
    assert "non-maximum suppression takes" in (best / "README.md").read_text()
    assert any(note.startswith("Of the budget of 1000 ms,") for note in opened.facts.notes)


def test_what_the_shipped_boxes_take_can_break_a_budget() -> None:
    """The file is within 10 ms, of which 1 is held back; its own suppression takes 2.5."""
    latency = Latency(ms=8, low_ms=7.9, high_ms=8.1, spread_ms=0.1, contention=None)
    exact = Agreement(same=1.0, max_abs=0.0, max_rel=0.0, n=1)
    budget = StudyConfig(budget_ms=10, budget_with_nms=True, nms_ms=1.0).budget
    assert budget == kdsearch.Budget(latency_ms=9)

    def within(p95_ms: float, counted_ms: float | None) -> bool:
        nms = Suppression(ms=0.1, p95_ms=p95_ms, images=4, counted_ms=counted_ms)
        package = Package(path=Path(), val=0.5, agreement=exact, latency=latency, nms=nms)
        return package.is_within(budget)

    assert [within(p95_ms, 1.0) for p95_ms in (0.5, 1.8, 2.5)] == [True, True, False]
    assert within(2.5, None)


def test_suppression_is_counted_only_where_there_is_some_and_a_budget_of_latency(
    study: Path, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match="--budget-with-nms is for detection"), quick():
        kdsearch.run(data="digits", budget_with_nms=True, out=tmp_path)
    with pytest.raises(SpecError, match="counts in --budget-ms; give that too"), quick():
        kdsearch.run(data=study.parents[1] / "shapes", budget_with_nms=True, out=tmp_path)
    with pytest.raises(SpecError, match="--nms is for the ONNX formats; torch-export is none"):
        kdsearch.export_study(study, ["torch-export"], nms=True)


def test_a_file_that_keeps_its_boxes_is_a_teacher_like_the_other(study: Path) -> None:
    data = datasets.load(str(study.parents[1] / "shapes"), cache_dir=study.parent / ".cache")
    found = []
    for name in ("student.onnx", "student-nms.onnx"):
        spec = TeacherSpec(name=f"onnx:{study / 'best' / name}")
        device, note = torch.device("cpu"), (lambda text: None)
        teacher = load_teacher(spec, data, cache_dir=study, seed=0, device=device, note=note)
        found.append(box_rules.shown(teacher(data.val.at(slice(4))), least=0.05))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


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


@pytest.mark.slow
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
).replace("epochs: 2", "epochs: 1")


@pytest.mark.slow
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
    report = (found.path / "report.md").read_text()
    assert re.search(r"\| multiply-adds \|[^|]*\| unknown \|", report)
    assert teacher.params > 0
    records = opened.records()
    assert {record.params["method.name"] for record in records} <= {*TAUGHT_BY, "none"}
    assert {record.state for record in records} == {"complete"}
    (boxes,) = (tmp_path / "results" / ".cache" / "teacher").rglob("*-boxes.safetensors")
    assert boxes.parent.name.startswith("plain-none")
