"""A study of masks from its folder to report, card and files: noise, classes, picture, --argmax."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import toy_masks
from PIL import Image
from quick import quick

import kdsearch
from kdsearch.study.open import load_study

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
    assert "![image, truth, answers and errors](best/validation.png)" in text
    assert "IoU of each class on test" in page
    assert "IoU of each class on test" in text
    assert "| class | IoU, % | of labels, % |" in card
    assert "(validation.png)" in card
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
