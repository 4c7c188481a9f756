"""A study of masks from its folder to report, card and files: noise, classes, picture, --argmax."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import onnx
import pytest
import toy_masks
from PIL import Image
from quick import quick

import kdsearch
from kdsearch.study.open import load_study

ROUNDED = {"Conv", "Gemm", "MatMul", "Relu", "Clip"}
SPACE = """
student:
  family: {choice: {resnet: {width: 0.25, depth: 4}}}
  head: {kind: {choice: [lraspp]}, channels: 16}
method: {name: {choice: {cwd: {mapping: logits}}}}
train: {epochs: 2, batch_size: 8, optimizer: adamw, lr: 0.005, class_weights: 0.5}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("study")
    (folder / "space.yaml").write_text(SPACE)
    with quick():
        found = kdsearch.run(
            data=toy_masks.write(folder / "toys"),
            space=folder / "space.yaml",
            teacher_epochs=1,
            budget=kdsearch.Budget(flops=40_000_000),
            trials=1,
            out=folder / "results",
            name="masks",
        )
        kdsearch.export_study(found, ["onnx", "onnx-int8"], argmax=True, max_drop=1.0)
        yield found.path


def test_the_noise_of_the_study_is_that_of_what_ships(study: Path) -> None:
    facts = load_study(study).facts
    shipped = facts.details[f"{facts.shipped} validation"]
    assert facts.metric.key == "miou"
    assert facts.metric.image_variance == shipped.image_variances["miou"]
    teacher = facts.details["teacher validation"].image_variances["miou"]
    assert teacher != facts.metric.image_variance
    assert any("standard error of a difference" in note for note in facts.notes)
    assert any(note.startswith("By class on test: lowest IoU") for note in facts.notes)


def test_report_and_card_show_classes_with_noise_and_the_same_picture(study: Path) -> None:
    page, text = ((study / name).read_text() for name in ("report.html", "report.md"))
    card = (study / "best" / "README.md").read_text()
    with Image.open(study / "best" / "validation.png") as picture:
        assert picture.width == 5 * 148
    assert (study / "best" / "validation.png").stat().st_size < 400_000
    assert 'class="strip" src="data:image/png;base64,' in page
    assert "![validation images and answers](best/validation.png)" in text
    assert "IoU of each class on test" in page
    assert "IoU of each class on test" in text
    assert "| class | IoU, % | of labels, % |" in card
    assert "(validation.png)" in card
    assert "`python predict.py IMAGE ...` writes the mask and an overlay of each image" in card
    for name in toy_masks.CLASSES:
        assert name in page


def test_files_of_classes_have_the_metric_of_the_logits(study: Path) -> None:
    metrics = json.loads((study / "best" / "metrics.json").read_text())
    files = metrics["files"]
    assert set(files) == {"student-argmax.onnx", "student-argmax-int8.onnx"}
    whole = files["student-argmax.onnx"]
    assert whole["val"] == pytest.approx(metrics["onnx"]["val"], abs=1e-3)
    assert whole["agreement"]["are_classes"]
    assert whole["agreement"]["same"] > 0.999
    assert whole["predicted"]["same"] > 0.999
    assert not whole["misses"]


def test_an_8_bit_segmenter_states_its_loss_and_is_tuned_where_that_is_too_much(
    study: Path,
) -> None:
    class Notes(kdsearch.Callback):
        notes: ClassVar[list[str]] = []

        def on_message(self, text: str) -> None:
            self.notes.append(text)

    with quick():  # -1: whatever it loses is too much
        found = kdsearch.export_study(study, ["onnx-int8"], max_drop=-1.0, callback=Notes())
    (file,) = found.files
    full = json.loads((study / "best" / "metrics.json").read_text())["onnx"]["val"]
    assert file.val + file.drop == pytest.approx(full, abs=1e-3)
    (line,) = [note for note in Notes.notes if "quantisation-aware training" in note]
    assert re.fullmatch(r"student-int8.onnx loses -?\d+\.\d\d points: .*", line)
    assert any(f"loses {100 * file.drop:.2f} points on 6 images" in miss for miss in file.misses)


def test_resizes_and_gates_of_an_8_bit_segmenter_stay_float(study: Path) -> None:
    graph = onnx.load(study / "best" / "student-argmax-int8.onnx").graph
    makers = {name: node for node in graph.node for name in node.output}
    users = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            users[name].append(node)
    kinds = {node.op_type for node in graph.node}
    assert {"Conv", "Resize", "ArgMax", "Sigmoid", "QuantizeLinear"} <= kinds
    for node in graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in makers:
            (back,) = users[node.output[0]]
            readers = {user.op_type for user in users[back.output[0]]}
            assert makers[node.input[0]].op_type in ROUNDED or readers & ROUNDED
    (gate,) = [node for node in graph.node if node.op_type == "Sigmoid"]
    assert {user.op_type for user in users[gate.output[0]]} == {"Mul"}
    (last,) = [node for node in graph.node if node.op_type == "ArgMax"]
    assert makers[last.input[0]].op_type == "Resize"


@pytest.mark.parametrize("name", ["torch-export", "openvino", "executorch"])
def test_other_files_of_classes_agree_with_the_network(study: Path, name: str) -> None:
    module = {"torch-export": "torch"}.get(name, name)
    pytest.importorskip(module)
    with quick():
        (file,) = kdsearch.export_study(study, [name], argmax=True, max_drop=1.0).files
    assert file.name.startswith("student-argmax.")
    assert file.agreement.are_classes
    assert file.agreement.same > 0.999
    assert file.predicted is not None
    assert file.predicted.same > 0.999
    assert not file.misses
